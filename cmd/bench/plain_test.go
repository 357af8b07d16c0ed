package main

import "testing"

// TestPlainServer is answered by a server that does nothing, and ends it.
func TestPlainServer(t *testing.T) {
	t.Parallel()
	p, err := startPlain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	answer, err := p.do(t.Context(), "GET", "/", nil)
	if err != nil || len(answer) != plainSize {
		t.Errorf("%d bytes, %v", len(answer), err)
	}
	if err := p.stop(); err != nil {
		t.Errorf("it did not end well: %v", err)
	}
}
