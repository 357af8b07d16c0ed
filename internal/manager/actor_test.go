package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestEventsFollowTheView: whoever looks at a model because of an event finds what the event told, or something newer.
func TestEventsFollowTheView(t *testing.T) {
	r := newRig(t, nil)
	r.model("m", nil)
	a, err := r.actor(r.ctx(), "m")
	if err != nil {
		t.Fatal(err)
	}
	sub := r.Bus.Subscribe(events.Filter{Models: []string{"m"}, Kinds: []registry.EventKind{registry.EventModelStatus}})
	defer sub.Close()
	over, cancel := context.WithCancel(r.ctx())
	cancel() // what is published already is read nevertheless
	err = a.do(r.ctx(), func() error {
		for _, on := range []registry.Trigger{registry.TriggerResolve, registry.TriggerFetch, registry.TriggerAbandon} {
			a.setArtifact(on)
			got, err := sub.Next(over)
			if seen := r.peek("m").rt.Artifact; len(got) > 0 && seen != a.rt.Artifact {
				return fmt.Errorf("after %s it was told that something changed while others still saw %q", on, seen)
			} else if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []registry.Status
	for len(told) < 3 {
		batch, err := sub.Next(r.ctx())
		if err != nil {
			t.Fatalf("of three changes %d were told: %v", len(told), err)
		}
		for _, msg := range batch {
			var st registry.ModelStatus
			if err := json.Unmarshal(msg.Body, &st); err != nil {
				t.Fatal(err)
			}
			told = append(told, st.Status)
		}
	}
	if want := []registry.Status{registry.StatusNotLoaded, registry.StatusFetching, registry.StatusNotLoaded}; !slices.Equal(told, want) {
		t.Errorf("told were %q, want %q", told, want)
	}
}
