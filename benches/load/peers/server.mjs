// A simple server of event streams: plain http, NATS, one write for each client and event.
import { createServer } from 'node:http'
import { connect } from 'nats'

const SUBJECTS = [
  [/^\/broadcast$/, () => 'load.all'],
  [/^\/one\/(\d+)$/, (n) => `load.n.${n}`],
  [/^\/core\/(\d+)$/, (n) => `core.${n}`],
]

const clients = new Map()

function subjectOf(path) {
  for (const [pattern, subject] of SUBJECTS) {
    const match = pattern.exec(path)
    if (match) return subject(...match.slice(1))
  }
}

const server = createServer((request, response) => {
  const subject = subjectOf(request.url)
  if (!subject) return response.writeHead(404).end()
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
  response.write('retry: 3000\n\n')
  if (!clients.has(subject)) clients.set(subject, new Set())
  const readers = clients.get(subject)
  readers.add(response)
  response.on('close', () => readers.delete(response))
})
server.requestTimeout = 0

const nats = await connect({ servers: process.argv[2] })
let count = 0
for (const subject of ['load.>', 'core.>']) {
  nats.subscribe(subject, {
    callback: (_, message) => {
      const readers = clients.get(message.subject)
      if (!readers || readers.size === 0) return
      // Once for all clients.
      const frame = Buffer.from(`data: ${message.string()}\nid: ${++count}\n\n`)
      for (const response of readers) response.write(frame)
    },
  })
}
await nats.flush()

server.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => {
  const { address, port } = server.address()
  console.log(JSON.stringify({ message: 'listening', address: `${address}:${port}` }))
})
