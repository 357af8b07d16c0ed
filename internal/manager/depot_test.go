package manager

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

const depotParts = sourcetest.DepotParts

// withDepot adds a depot to a rig's sources.
func withDepot(d **sourcetest.Depot) func(*Options) {
	return func(o *Options) {
		if *d == nil {
			*d = sourcetest.NewDepot(filepath.Join(filepath.Dir(o.DataDir), "depot"))
		}
		o.Sources = append(slices.Clone(o.Sources), *d)
	}
}

// fetchable registers a model of the depot.
func (r *rig) fetchable(id, path string, change ...func(*registry.Model)) registry.Record {
	r.t.Helper()
	m := registry.Model{ModelID: id, SourceType: registry.SourceHuggingFace, SourcePath: path, ModelFormat: registry.FormatGGUF, Engine: fake.Name, RequiredRAMMB: 32}
	for _, f := range change {
		f(&m)
	}
	rec, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "ada", Persist: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return rec
}

func (r *rig) mustFetch(id string) registry.Operation {
	r.t.Helper()
	op, err := r.Fetch(r.ctx(), id, FetchOptions{Actor: "ada", Cause: "a test"})
	if err != nil {
		r.t.Fatalf("fetch %s: %v", id, err)
	}
	return op
}

// stageOf returns a stage of an operation as it is now.
func (r *rig) stageOf(op registry.Operation, name registry.StageName) registry.Stage {
	r.t.Helper()
	now, err := r.Operation(r.ctx(), op.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range now.Stages {
		if s.Name == name {
			return s
		}
	}
	r.t.Fatal(fmt.Errorf("no stage %s: %+v", name, now))
	return registry.Stage{}
}
