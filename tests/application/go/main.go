// Application beside a sidecar, with the HTTP server of Go: `application PORT KEEP_ALIVE http|h2c`.
// KEEP_ALIVE has a unit, such as `5s`. Prints each request as a line of JSON.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	printing sync.Mutex
	output   = json.NewEncoder(os.Stdout)
)

func report(line map[string]any) {
	printing.Lock()
	defer printing.Unlock()
	output.Encode(line)
}

// Returns whether the response is complete.
func page(w http.ResponseWriter, r *http.Request) bool {
	name, argument, _ := strings.Cut(r.URL.Path[1:], "/")
	switch name {
	case "echo":
		hash := sha256.New()
		count, err := io.Copy(hash, r.Body)
		if err != nil {
			return false
		}
		raw, trailers := []string{"Host", r.Host}, map[string]string{}
		for name, values := range r.Header {
			for _, value := range values {
				raw = append(raw, name, value)
			}
		}
		for name, values := range r.Trailer {
			trailers[strings.ToLower(name)] = strings.Join(values, ", ")
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"method": r.Method, "url": r.RequestURI, "rawHeaders": raw, "trailers": trailers,
			"bytes": count, "hash": hex.EncodeToString(hash.Sum(nil)),
		})
	case "status":
		status, _ := strconv.Atoi(argument)
		w.WriteHeader(status)
	case "early":
		status, err := strconv.Atoi(argument)
		if err != nil {
			status = 413
		}
		w.WriteHeader(status)
		io.WriteString(w, "too large")
	case "silent":
		<-r.Context().Done()
		return false
	case "later":
		time.Sleep(time.Second)
		io.WriteString(w, "late\n")
	case "endless":
		for r.Context().Err() == nil {
			io.WriteString(w, "piece\n")
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
		return false
	case "large":
		left, _ := strconv.Atoi(argument)
		piece := []byte(strings.Repeat("a", 65536))
		for left > 0 {
			written, err := w.Write(piece[:min(left, len(piece))])
			if err != nil {
				return false
			}
			left -= written
		}
	case "trailers":
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "part")
		w.(http.Flusher).Flush()
		w.Header().Set("X-Sum", "1")
	case "range":
		http.ServeContent(w, r, "range.txt", time.Unix(1e9, 0), strings.NewReader("0123456789"))
	default:
		io.WriteString(w, r.URL.Path+"\n")
	}
	return true
}

func answer(w http.ResponseWriter, r *http.Request) {
	report(map[string]any{"kind": "request", "method": r.Method, "url": r.URL.Path})
	complete := page(w, r)
	report(map[string]any{"kind": "end", "url": r.URL.Path, "complete": complete})
}

func main() {
	idle, err := time.ParseDuration(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(answer), IdleTimeout: idle, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(os.Args[3] == "http")
	server.Protocols.SetUnencryptedHTTP2(os.Args[3] == "h2c")
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	report(map[string]any{"kind": "listening"})
	log.Fatal(server.Serve(listener))
}
