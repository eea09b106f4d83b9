// Package bench measures service groups with real processes of berth, beside consul-template's in exec mode. All but this
// file needs the build tag e2e.
package bench
