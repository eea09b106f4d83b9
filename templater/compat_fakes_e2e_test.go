//go:build e2e

package templater_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// newEnterprise is a proxy for a Consul that answers queries only Consul Enterprise can answer.
func newEnterprise(t *testing.T, address string) *httptest.Server {
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(transport.CloseIdleConnections)
	target := &url.URL{Scheme: "http", Host: address}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: transport, ErrorLog: discard,
	}
	return newServer(t, func(w http.ResponseWriter, r *http.Request) {
		var answer any
		switch r.URL.Path {
		case "/v1/partitions":
			answer = []map[string]string{
				{"Name": "default", "Description": "the first"}, {"Name": "blue", "Description": "the <second>"},
			}
		case "/v1/imported-services":
			answer = []map[string]string{
				{"Service": "pay", "Namespace": "default", "SourcePartition": "blue"},
				{"Service": "mail", "Namespace": "default", "SourcePartition": r.FormValue("partition")},
			}
		default:
			proxy.ServeHTTP(w, r)
			return
		}
		if r.FormValue("index") != "" { // it never changes
			<-r.Context().Done()
			return
		}
		w.Header().Set("X-Consul-Index", "5")
		_ = json.NewEncoder(w).Encode(answer)
	})
}

// newServer answers until the end of the test. Then it cancels the contexts of all queries, including those that a client
// repeats when its connection is closed.
func newServer(t *testing.T, f http.HandlerFunc) *httptest.Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := httptest.NewUnstartedServer(f)
	s.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	s.Start()
	t.Cleanup(func() {
		cancel()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// counter counts queries by their paths.
type counter struct {
	mu    sync.Mutex
	paths map[string]int
}

func (c *counter) note(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paths == nil {
		c.paths = map[string]int{}
	}
	c.paths[path]++
}

func (c *counter) asked() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.paths)
}

// fakeVault answers what the library asks Vault.
type fakeVault struct {
	*httptest.Server
	counter
}

func newFakeVault(t *testing.T) *fakeVault {
	certificate := newCertificate(t)
	lease := map[string]any{"lease_id": "database/creds/app/1", "lease_duration": 3600, "renewable": true}
	kv2 := func(version int, data map[string]any) map[string]any {
		return map[string]any{"request_id": "4711", "data": map[string]any{
			"data": data, "metadata": map[string]any{"version": version, "deletion_time": ""},
		}}
	}
	mount := func(path, kind, version string) map[string]any {
		data := map[string]any{"path": path, "type": kind}
		if version != "" {
			data["options"] = map[string]string{"version": version}
		}
		return map[string]any{"data": data}
	}
	answers := map[string]any{
		"GET /v1/secret/data/app": kv2(3, map[string]any{
			"password": "hunter2", "n": 12345678901, "deep": map[string]any{"k": "<v>"}, "empty": nil,
		}),
		"GET /v1/secret/data/app version=2": kv2(2, map[string]any{"password": "before"}),
		"GET /v1/secret/data/apps/a":        kv2(1, map[string]any{"name": "first"}),
		"GET /v1/secret/data/apps/b":        kv2(1, map[string]any{"name": "second"}),
		"GET /v1/kv1/app": map[string]any{
			"lease_duration": 2764800, "data": map[string]any{"user": "root", "z": 1.5},
		},
		"GET /v1/database/creds/app": map[string]any{
			"lease_id": lease["lease_id"], "lease_duration": 3600, "renewable": true,
			"data": map[string]any{"username": "v-app", "password": "p&ss"},
		},
		"PUT /v1/sys/leases/renew": lease,
		"PUT /v1/transit/encrypt/app": map[string]any{
			"data": map[string]any{"ciphertext": "vault:v1:xyz", "key_version": 1},
		},
		"PUT /v1/pki/issue/web":              map[string]any{"data": certificate},
		"GET /v1/secret/metadata/apps list":  map[string]any{"data": map[string]any{"keys": []string{"b", "a"}}},
		"GET /v1/kv1 list":                   map[string]any{"data": map[string]any{"keys": []string{"other/", "app"}}},
		"GET /v1/kv1/nosuch list":            nil,
		"GET /v1/sys/internal/ui/mounts/kv1": mount("kv1/", "kv", "1"),
	}
	for _, path := range []string{"secret/app", "secret/data/app", "secret/apps", "secret/apps/a", "secret/apps/b"} {
		answers["GET /v1/sys/internal/ui/mounts/"+path] = mount("secret/", "kv", "2")
	}
	for _, path := range []string{"kv1/app", "kv1/nosuch"} {
		answers["GET /v1/sys/internal/ui/mounts/"+path] = mount("kv1/", "kv", "1")
	}
	answers["GET /v1/sys/internal/ui/mounts/database/creds/app"] = mount("database/", "database", "")
	answers["GET /v1/sys/internal/ui/mounts/transit/encrypt/app"] = mount("transit/", "transit", "")
	answers["GET /v1/sys/internal/ui/mounts/pki/issue/web"] = mount("pki/", "pki", "")

	v := &fakeVault{}
	v.Server = newServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked := r.Method + " " + r.URL.Path
		switch {
		case r.FormValue("list") == "true":
			asked += " list"
		case r.FormValue("version") != "":
			asked += " version=" + r.FormValue("version")
		}
		v.note(asked)
		answer, known := answers[asked]
		switch {
		case r.Header.Get("X-Vault-Token") != "root":
			t.Errorf("Vault was asked %s with the token %q", asked, r.Header.Get("X-Vault-Token"))
			w.WriteHeader(http.StatusForbidden)
		case !known:
			t.Errorf("Vault was asked %s", asked)
			w.WriteHeader(http.StatusInternalServerError)
		case answer == nil:
			w.WriteHeader(http.StatusNotFound)
		default:
			_ = json.NewEncoder(w).Encode(answer)
		}
	})
	return v
}

// newCertificate returns a certificate as issued by Vault's PKI.
func newCertificate(t *testing.T) map[string]any {
	t.Helper()
	encode := func(kind string, der []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	newKey := func() *ecdsa.PrivateKey {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
	}
	web := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "web.example.com"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	caPEM := encode("CERTIFICATE", caDER, err)
	webDER, err := x509.CreateCertificate(rand.Reader, web, ca, &key.PublicKey, caKey)
	webPEM := encode("CERTIFICATE", webDER, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	return map[string]any{
		"certificate": webPEM, "private_key": encode("EC PRIVATE KEY", keyDER, err), "private_key_type": "ec",
		"issuing_ca": caPEM, "ca_chain": []string{caPEM}, "serial_number": "02", "expiration": ca.NotAfter.Unix(),
	}
}

// fakeNomad answers the library's requests to Nomad, and blocks queries until something changes.
type fakeNomad struct {
	*httptest.Server
	counter // queries that did not block

	mu      sync.Mutex
	index   uint64
	changed chan struct{}
}

func newFakeNomad(t *testing.T) *fakeNomad {
	f := &fakeNomad{index: 7, changed: make(chan struct{})}
	f.Server = newServer(t, func(w http.ResponseWriter, r *http.Request) {
		seen, _ := strconv.ParseUint(r.FormValue("index"), 10, 64)
		if seen == 0 {
			f.note(r.URL.Path)
		}
		f.mu.Lock()
		for seen >= f.index {
			changed := f.changed
			f.mu.Unlock()
			select {
			case <-r.Context().Done():
				return
			case <-changed:
			}
			f.mu.Lock()
		}
		index := f.index
		f.mu.Unlock()
		w.Header().Set("X-Nomad-Index", fmt.Sprint(index))
		w.Header().Set("X-Nomad-LastContact", "0")
		w.Header().Set("X-Nomad-KnownLeader", "true")
		answer, known := nomadAnswer(r, index)
		if !known {
			t.Errorf("Nomad was asked %s", r.URL)
		}
		if answer == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	return f
}

// change adds an instance of api.
func (f *fakeNomad) change() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	close(f.changed)
	f.changed = make(chan struct{})
}

func nomadAnswer(r *http.Request, index uint64) (answer any, known bool) {
	instance := func(service string, n int, tags ...string) map[string]any {
		return map[string]any{
			"ID": fmt.Sprint(service, "-", n), "ServiceName": service, "Namespace": "default", "NodeID": fmt.Sprint("node-", n),
			"Datacenter": "dc1", "JobID": "job", "AllocID": fmt.Sprint("alloc-", n), "Tags": tags,
			"Address": fmt.Sprint("10.1.0.", n), "Port": 9000 + n, "CreateIndex": 5, "ModifyIndex": 6,
		}
	}
	meta := func(path string) map[string]any {
		return map[string]any{
			"Namespace": r.FormValue("namespace"), "Path": path, "CreateIndex": 3, "ModifyIndex": 4,
			"CreateTime": 1700000000000000000, "ModifyTime": 1700000001000000000,
		}
	}
	switch r.URL.Path {
	case "/v1/services":
		return []map[string]any{{"Namespace": "default", "Services": []map[string]any{
			{"ServiceName": "db", "Tags": []string{"sql"}}, {"ServiceName": "api", "Tags": []string{"green", "blue"}},
		}}}, true
	case "/v1/service/api":
		list := []map[string]any{instance("api", 2, "green"), instance("api", 1, "green", "blue")}
		if r.FormValue("choose") != "" {
			return list[:1], true
		}
		if index > 7 {
			list = append(list, instance("api", 3))
		}
		return list, true
	case "/v1/service/db":
		return []map[string]any{instance("db", 1, "sql")}, true
	case "/v1/vars":
		switch r.FormValue("prefix") {
		case "", "nomad/jobs":
			return []map[string]any{meta("nomad/jobs/app"), meta("nomad/jobs/other")}, true
		}
		return []map[string]any{}, r.FormValue("prefix") == "nosuch"
	case "/v1/var/nomad/jobs/app":
		v := meta("nomad/jobs/app")
		v["Items"] = map[string]string{"user": "root", "password": `p"ss <&>`}
		return v, true
	}
	return nil, r.URL.Path == "/v1/var/nosuch"
}
