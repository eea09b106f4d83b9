// Command www answers with the value of the service data, which it requests through HAProxy. Several can run next to each other:
//
//	www 20001
//
// DATA_URL is where HAProxy serves data.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"berth/deploy/examples/processes/service"
)

// answer names the processes it comes from.
type answer struct {
	WWW  process         `json:"www"`
	Data json.RawMessage `json:"data"`
}

type process struct {
	PID  int `json:"pid"`
	Port int `json:"port"`
}

func main() {
	data := cmp.Or(os.Getenv("DATA_URL"), "http://127.0.0.1:8081/")
	service.Main("www", func(port int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			value, err := ask(r.Context(), data)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer{process{os.Getpid(), port}, value})
		})
	})
}

func ask(ctx context.Context, url string) (value json.RawMessage, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return value, json.NewDecoder(resp.Body).Decode(&value)
}
