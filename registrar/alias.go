package registrar

import "berth/registrar/label"

// The grammar's types under their former names, until this package's files name package label themselves.
type (
	Check     = label.Check
	Container = label.Container
	Host      = label.Host
	Instance  = label.Instance
	Ready     = label.Ready
)

const (
	ReadyNone        = label.ReadyNone
	ReadyTCP         = label.ReadyTCP
	ReadyHTTP        = label.ReadyHTTP
	ReadyHealthcheck = label.ReadyHealthcheck

	metaChecks    = label.MetaChecks
	metaOwner     = label.MetaOwner
	metaContainer = label.MetaContainer

	sigkill = 9
	sigterm = 15
)
