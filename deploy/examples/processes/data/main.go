// Command data answers with a value. Several can run next to each other:
//
//	data 20101
package main

import (
	"encoding/json"
	"net/http"
	"os"
	"sync/atomic"

	"berth/deploy/examples/processes/service"
)

// answer names the process it comes from.
type answer struct {
	PID   int    `json:"pid"`
	Port  int    `json:"port"`
	Value uint64 `json:"value"` // number of answers by this process
}

func main() {
	service.Main("data", func(port int) http.Handler {
		var answers atomic.Uint64
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer{os.Getpid(), port, answers.Add(1)})
		})
	})
}
