package store_test

import (
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/store"
)

// open opens a store that is closed when the test ends.
func open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
