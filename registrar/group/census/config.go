package census

import (
	"context"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"berth/registrar/group/format"
	"berth/registrar/group/store"
)

// config is a service's configuration. It has either Text or TextOmitted, which says why Text is missing.
type config struct {
	Service     string     `json:"service"`
	Version     uint64     `json:"version"` // 0 = none was applied, or not by berth
	Sum         string     `json:"sum,omitempty"`
	AppliedBy   string     `json:"applied_by,omitempty"`
	AppliedAt   *time.Time `json:"applied_at,omitempty"`
	ByHand      bool       `json:"by_hand,omitempty"` // the text was not written by berth
	Format      string     `json:"format,omitempty"`
	Text        *string    `json:"text,omitempty"`
	TextOmitted string     `json:"text_omitted,omitempty"`
	Table       any        `json:"table,omitempty"` // content of the text, masked, if Text is missing
	Merged      any        `json:"merged,omitempty"`
}

func (h *handler) config(ctx context.Context, _ *reading, name string) (int, any, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return 0, nil, err
	}
	v, err := h.Store.Current(ctx, store.Item{Service: name})
	done()
	c := config{Service: name}
	switch {
	case errors.Is(err, store.ErrNone):
	case err != nil:
		return 0, nil, err
	default:
		c.Version, c.Sum, c.AppliedBy, c.ByHand = v.Version, v.Sum, clip(v.By), v.ByHand
		if !v.At.IsZero() {
			c.AppliedAt = &v.At
		}
		c.Format = clip(v.Format)
		h.text(&c, v.Text)
	}
	if h.Merged != nil {
		if table, ok := h.Merged(name); ok {
			if c.Merged, _, err = mask(table, h.ShowSecrets); err != nil {
				return 0, nil, err
			}
		}
	}
	return http.StatusOK, c, nil
}

// text adds the text, or the part of it that may be shown.
func (h *handler) text(c *config, text []byte) {
	shown := string(text)
	switch {
	case !utf8.Valid(text):
		c.TextOmitted = "it is not UTF-8"
		return
	case h.ShowSecrets:
		c.Text = &shown
		return
	case c.Format == "raw":
		c.TextOmitted = "it is raw, and may hold secrets"
		return
	}
	table, kind, err := format.Parse(text, format.Kind(c.Format))
	if err != nil {
		c.TextOmitted = "it is neither TOML nor YAML nor JSON, and may hold secrets"
		return
	}
	c.Format = string(kind)
	out, found, err := mask(table, false)
	switch {
	case err != nil:
		c.TextOmitted = err.Error()
	case found, maskText(shown) != shown: // a comment also has secrets
		c.TextOmitted, c.Table = "it may hold secrets: see table", out
	default:
		c.Text = &shown
	}
}
