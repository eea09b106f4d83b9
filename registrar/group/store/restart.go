package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hashicorp/consul/api"
)

// Order is an order to restart a service's instances.
type Order struct {
	Number   uint64    `json:"-"` // 0 = never ordered
	By       string    `json:"by,omitempty"`
	At       time.Time `json:"at"`
	Strategy string    `json:"strategy,omitempty"` // "" = each instance's own
}

// Restart orders a restart of a service's instances and returns the order's number.
func (s *Store) Restart(ctx context.Context, service, by, strategy string) (uint64, error) {
	if err := ValidService(service); err != nil {
		return 0, err
	}
	value, err := json.Marshal(Order{By: by, At: time.Now().UTC(), Strategy: strategy})
	if err != nil {
		return 0, err
	}
	for {
		pair, err := s.get(ctx, RestartKey(service))
		if err != nil {
			return 0, err
		}
		next := &api.KVPair{Key: RestartKey(service), Flags: 1, Value: value}
		if pair != nil {
			next.Flags, next.ModifyIndex = pair.Flags+1, pair.ModifyIndex
		}
		if ok, err := s.cas(ctx, next); ok || err != nil {
			return next.Flags, err
		}
	}
}

// Ordered returns the newest restart order for a service's instances. The number alone counts: a value from another program
// leaves the rest empty.
func (s *Store) Ordered(ctx context.Context, service string) (Order, error) {
	if err := ValidService(service); err != nil {
		return Order{}, err
	}
	pair, err := s.get(ctx, RestartKey(service))
	if err != nil || pair == nil {
		return Order{}, err
	}
	var o Order
	if json.Unmarshal(pair.Value, &o) != nil {
		o = Order{}
	}
	o.Number = pair.Flags
	return o, nil
}
