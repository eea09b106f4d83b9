package testenv

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Client opens a connection for each request and leaves none, so that a proxy may send every one to another server.
var Client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Get sends one request and returns the body of the answer, without the space around it. The error of an answer other than
// 200 is its status; the body is returned all the same.
func Get(url string) (string, error) {
	body, err := Fetch(context.Background(), Client, url)
	return strings.TrimSpace(body), err
}

// Fetch is Get for a client of the caller's, and returns the body as it is.
func Fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// Answer is Get for a comparison: the body, or the error as text.
func Answer(url string) string {
	body, err := Get(url)
	if err != nil {
		return err.Error()
	}
	return body
}

// GetJSON decodes an answer.
func GetJSON(url string, into any) error {
	body, err := Get(url)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", url, err, body)
	}
	return json.Unmarshal([]byte(body), into)
}

// HAProxyStats reads the statistics page of a HAProxy: one row for each line, by the name of the field.
func HAProxyStats(url string) ([]map[string]string, error) {
	body, err := Get(url)
	if err != nil {
		return nil, fmt.Errorf("statistics of HAProxy: %w", err)
	}
	lines, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(body, "# "))).ReadAll()
	if err != nil || len(lines) == 0 {
		return nil, fmt.Errorf("statistics of HAProxy: %q, %w", body, err)
	}
	var rows []map[string]string
	for _, fields := range lines[1:] {
		row := map[string]string{}
		for i, name := range lines[0] {
			row[name] = fields[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// Host returns the name of the host that an answer of the demo app comes from. The error says what else the answer is.
func Host(resp *http.Response) (string, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(body), "\n")
	host, ok := strings.CutPrefix(first, "Hosted by ")
	if resp.StatusCode != http.StatusOK || !ok {
		return "", fmt.Errorf("%s: %q", resp.Status, first)
	}
	return host, nil
}

// AskApp sends one request to the demo app and returns the host that answered.
func AskApp(url string) (string, error) {
	resp, err := Client.Get(url)
	if err != nil {
		return "", err
	}
	return Host(resp)
}

// Hosts asks the demo app at an address often enough for every server behind a proxy to be asked, and returns the names of
// the hosts that answered.
func Hosts(address string) ([]string, error) {
	seen := map[string]bool{}
	for range 20 {
		host, err := AskApp("http://" + address + "/")
		if err != nil {
			return nil, err
		}
		seen[host] = true
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// ExpectHosts is nil when exactly n different hosts answer.
func ExpectHosts(address string, n int) error {
	hosts, err := Hosts(address)
	if err == nil && len(hosts) != n {
		err = fmt.Errorf("%d hosts answer, want %d: %v", len(hosts), n, hosts)
	}
	return err
}
