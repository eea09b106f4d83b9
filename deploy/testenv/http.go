package testenv

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Client opens a connection for each request and leaves none, so that a proxy may send every one to another server.
var Client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Get sends one request and returns the body of the answer, without the space around it. The error of an answer other than
// 200 is its status; the body is returned all the same.
func Get(url string) (string, error) {
	resp, err := Client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(body)), err
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
