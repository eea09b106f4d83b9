// Package policies has the Consul rights of each part of berth, for the tests, which run with no other rights.
package policies

import (
	_ "embed"
	"strings"
)

// Registrar has the rights of berth registrar, Templater of berth templater, and Viewer of a read-only user.
var (
	//go:embed registrar.hcl
	Registrar string
	//go:embed templater.hcl
	Templater string
	//go:embed viewer.hcl
	Viewer string

	//go:embed service.hcl
	service string
	//go:embed operator.hcl
	operator string
	//go:embed rollout.hcl
	rollout string
)

// Service returns the rights of berth service for a service.
func Service(name string) string { return of(service, name) }

// Operator returns the rights of a service's operator.
func Operator(name string) string { return of(operator, name) }

// Rollout returns the rights to roll out a service.
func Rollout(name string) string { return of(rollout, name) }

// of inserts a service into a policy, as the comment in its file describes.
func of(policy, service string) string { return strings.ReplaceAll(policy, "SERVICE", service) }
