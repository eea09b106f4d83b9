package main

import (
	"context"
	"net/http"
	"slices"
	"time"

	"berth/registrar"
	"berth/registrar/group/census"
	"berth/registrar/group/store"
)

// reportTime is how long the registrar may take to say which instances are here: it answers between two events.
const reportTime = time.Second

// handleCensus has a server answer for the groups of Consul, and for the instances that are here. Merged may be nil.
func (p *process) handleCensus(mux *http.ServeMux, local func() []census.Local, merged func(service string) (map[string]any, bool)) error {
	consul, err := consulClient(p.config)
	if err != nil {
		return err
	}
	h := census.New(census.Options{
		Consul: consul, Store: store.New(consul), Local: local, Merged: merged, ShowSecrets: p.config.ShowSecrets, Log: p.log,
	})
	for _, path := range []string{"/census", "/services", "/services/"} {
		mux.Handle(path, h)
	}
	return nil
}

// localInstances returns a func that returns the instances which a registrar has registered.
func localInstances(ask func(context.Context) (registrar.Report, error)) func() []census.Local {
	absent := []registrar.State{registrar.ToBeRegistered, registrar.Waiting, registrar.NotRegistered, registrar.Unwanted, registrar.LeftAlone}
	return func() (all []census.Local) {
		ctx, cancel := context.WithTimeout(context.Background(), reportTime)
		defer cancel()
		report, err := ask(ctx)
		if err != nil {
			return nil // it has not started, or ends
		}
		for _, c := range report.Containers {
			for _, i := range c.Instances {
				if !slices.Contains(absent, i.State) {
					all = append(all, census.Local{Service: i.Service, ID: i.ID})
				}
			}
		}
		return all
	}
}
