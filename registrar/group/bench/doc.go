// Package bench measures service groups with real berth processes, next to consul-template's in exec mode. Every other file
// needs the build tag e2e.
package bench
