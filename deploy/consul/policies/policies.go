// Package policies has the rights that each part of berth needs in Consul, for the tests, which run with no others.
package policies

import (
	_ "embed"
	"strings"
)

// Registrar are the rights of berth registrar, Templater those of berth templater, and Viewer those of who only looks.
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

// Service are the rights of berth service for a service.
func Service(name string) string { return of(service, name) }

// Operator are the rights of the operator of a service.
func Operator(name string) string { return of(operator, name) }

// Rollout are the rights of who rolls out a service.
func Rollout(name string) string { return of(rollout, name) }

// of fills a service into a policy, as the comment in its file tells users to.
func of(policy, service string) string { return strings.ReplaceAll(policy, "SERVICE", service) }
