package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestQuantileIsTheNearestRank(t *testing.T) {
	t.Parallel()
	var ds []time.Duration
	for i := 200; i > 0; i-- {
		ds = append(ds, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 1, .5: 100, .99: 198, 1: 200} {
		if got := quantile(ds, q); got != want {
			t.Errorf("quantile %v of 1…200 is %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, .99); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// Of many samples of a known median, the bounds hold it about as often as they say.
func TestMedianBoundsHoldTheMedian(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	held := 0
	for range 2000 {
		ds := make([]time.Duration, 100)
		for i := range ds {
			ds[i] = time.Duration(1000 * random.ExpFloat64()) // lopsided, as times are; its median is 1000·ln 2
		}
		slices.Sort(ds)
		if low, high := medianBounds(len(ds)); ds[low] <= 693 && ds[high] >= 693 {
			held++
		}
	}
	if held < 1880 || held > 1960 {
		t.Errorf("the bounds hold the median in %d of 2000 cases, want about 1900", held)
	}
}

// A server that answers one at a time and stalls once is charged for everybody whom it kept waiting: that is what an
// open loop is for.
func TestOpenLoopChargesAStall(t *testing.T) {
	t.Parallel()
	const stall = 200 * time.Millisecond
	turn := make(chan struct{}, 1)
	got, err := openLoop(t.Context(), 100, 30, func(_ context.Context, i int) (func() error, error) {
		turn <- struct{}{}
		defer func() { <-turn }()
		if i == 0 {
			<-time.After(stall)
		}
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	waited := 0
	for _, d := range got.latency {
		if d > stall/4 {
			waited++
		}
	}
	if waited < 10 {
		t.Errorf("only %d of 30 requests are charged for the stall", waited)
	}
}

func TestOpenLoopEndsAtTheFirstError(t *testing.T) {
	t.Parallel()
	want := errors.New("broken")
	for name, request := range map[string]func(context.Context, int) (func() error, error){
		"request": func(context.Context, int) (func() error, error) { return nil, want },
		"check":   func(context.Context, int) (func() error, error) { return func() error { return want }, nil },
	} {
		if _, err := openLoop(t.Context(), 1000, 10_000, request); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestModelsAreValid(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for i := range 2000 {
		m := modelAt(i)
		if errs := registry.Validate(m); len(errs) > 0 {
			t.Fatalf("model %d: %v", i, errs)
		}
		if key := strings.ToLower(m.ModelID); seen[key] {
			t.Fatalf("model %d has the id of another one: %s", i, m.ModelID)
		} else {
			seen[key] = true
		}
	}
	doc, err := manifest.Parse(modelsFile(500, "x-"))
	if err != nil {
		t.Fatal(err)
	}
	if len(doc.Entries) != 500 || len(doc.Issues) != 0 {
		t.Errorf("%d entries, issues %v", len(doc.Entries), doc.Issues)
	}
}

func TestUnknownGroupsAreRefused(t *testing.T) {
	t.Parallel()
	b := &bench{models: 1000, rate: 1, span: time.Second}
	if err := b.run(t.Context(), "list,lsit"); err == nil || !strings.Contains(err.Error(), "lsit") {
		t.Errorf("got %v", err)
	}
}
