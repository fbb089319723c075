// One Go client library, used as its README says: clients LIBRARY URL. Prints what ../clients.mjs prints.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	launchdarkly "github.com/launchdarkly/eventsource"
	r3labs "github.com/r3labs/sse/v2"
	tmaxmax "github.com/tmaxmax/go-sse"
)

// Larger than any event of the matrix; the default of two libraries is 64 KiB.
const eventBytesMax = 16 << 20

func show(line map[string]string) {
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

func event(name, data, id string) {
	if name == "" {
		name = "message"
	}
	show(map[string]string{"kind": "event", "name": name, "data": data, "id": id})
	if data == "END" {
		os.Exit(0)
	}
}

func failed(err error) { show(map[string]string{"kind": "error", "message": fmt.Sprint(err)}) }
func over(why any)     { show(map[string]string{"kind": "over", "message": fmt.Sprint(why)}) }

func main() {
	library, url := os.Args[1], os.Args[2]
	switch library {
	case "r3labs":
		client := r3labs.NewClient(url, r3labs.ClientMaxBufferSize(eventBytesMax))
		over(client.SubscribeRaw(func(given *r3labs.Event) {
			event(string(given.Event), string(given.Data), string(given.ID))
		}))
	case "tmaxmax":
		request, _ := http.NewRequest("GET", url, nil)
		connection := tmaxmax.NewConnection(request)
		connection.Buffer(nil, eventBytesMax)
		connection.SubscribeToAll(func(given tmaxmax.Event) { event(given.Type, given.Data, given.LastEventID) })
		over(connection.Connect())
	case "launchdarkly-go":
		onError := func(err error) launchdarkly.StreamErrorHandlerResult {
			failed(err)
			return launchdarkly.StreamErrorHandlerResult{CloseNow: false}
		}
		stream, err := launchdarkly.SubscribeWithURL(url,
			launchdarkly.StreamOptionCanRetryFirstConnection(-1),
			launchdarkly.StreamOptionInitialRetry(500*time.Millisecond),
			launchdarkly.StreamOptionErrorHandler(onError))
		if err != nil {
			over(err)
			return
		}
		for given := range stream.Events {
			event(given.Event(), given.Data(), given.Id())
		}
		over("the channel is closed")
	}
}
