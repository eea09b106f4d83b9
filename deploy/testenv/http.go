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

// Client opens a connection for each request and keeps none, so a proxy may send each request to another server.
var Client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Get sends a request and returns the trimmed body of the answer. For a status other than 200, the error is the status, and
// the body is still returned.
func Get(url string) (string, error) {
	body, err := Fetch(context.Background(), Client, url)
	return strings.TrimSpace(body), err
}

// Fetch is Get with the caller's client, and does not trim the body.
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

// HAProxyStats reads a HAProxy's statistics page: one row for each line, by field name.
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

// Host returns the host that an answer of the demo app comes from. Its error describes any other answer.
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

// AskApp sends a request to the demo app and returns the host that answered.
func AskApp(url string) (string, error) {
	resp, err := Client.Get(url)
	if err != nil {
		return "", err
	}
	return Host(resp)
}

// Hosts asks the demo app at an address often enough to reach every server behind a proxy, and returns the hosts that
// answered.
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

// ExpectHosts returns nil if exactly n different hosts answer.
func ExpectHosts(address string, n int) error {
	hosts, err := Hosts(address)
	if err == nil && len(hosts) != n {
		err = fmt.Errorf("%d hosts answer, want %d: %v", len(hosts), n, hosts)
	}
	return err
}
