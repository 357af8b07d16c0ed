package store_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

func openHere(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), store.Options{Path: path})
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

func putPlain(t *testing.T, s *store.Store, id, team string, persist bool) {
	t.Helper()
	m := registry.Model{ModelID: id, SourceType: registry.SourceHuggingFace, SourcePath: "org/" + id, ModelFormat: registry.FormatGGUF, Team: team}
	if _, _, err := s.PutModel(context.Background(), m, store.PutOptions{Actor: "ada", Persist: persist}); err != nil {
		t.Fatal(err)
	}
}

func TestArtifacts(t *testing.T) {
	t.Parallel()
	ctx, path := context.Background(), filepath.Join(t.TempDir(), "r.db")
	s := openHere(t, path)
	putPlain(t, s, "Kept", "default", true)
	putPlain(t, s, "passing", "default", false)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	whole := registry.ModelArtifact{
		ModelID: "Kept", Ref: "ref", Source: registry.SourceHuggingFace, Path: "org/Kept", Format: registry.FormatGGUF, Requested: "main", Revision: "abc", Root: "/r", Main: "m",
		Bytes: 7, Files: []registry.File{{Path: "m", Size: 7, SHA256: "00"}}, Facts: registry.Facts{Parameters: 42, Notes: []string{"n"}}, Fetched: "abc", Loaded: "aaa", LoadedTokenizer: &registry.Companion{Path: "org/words", Revision: "t0"}, Changed: "m was replaced",
		Problem: &registry.Problem{Code: registry.CodeInvalid, Msg: "p"}, ResolvedAt: at, FetchedAt: at.Add(1), UsedAt: at.Add(2),
	}
	seen := []string{}
	err := s.UpdateArtifacts(ctx, []string{"Kept", "none", "passing", "kept"}, func(rec registry.Record, before registry.ModelArtifact) (registry.ModelArtifact, bool) {
		seen = append(seen, rec.ModelID)
		if before.ModelID != rec.ModelID || before.Ref != "" {
			t.Errorf("before: %+v", before)
		}
		return whole, rec.ModelID == "Kept"
	})
	if diff := cmp.Diff([]string{"Kept", "passing"}, seen); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	got, ok, err := s.Artifact(ctx, "Kept")
	if diff := cmp.Diff(whole, got); err != nil || !ok || diff != "" {
		t.Errorf("%v %v\n%s", ok, err, diff)
	}
	for _, id := range []string{"passing", "kept", "none"} {
		if _, ok, err := s.Artifact(ctx, id); ok || err != nil {
			t.Errorf("%s: %v %v", id, ok, err)
		}
	}
	if err := s.UpdateArtifacts(ctx, []string{"passing"}, func(registry.Record, registry.ModelArtifact) (registry.ModelArtifact, bool) {
		return registry.ModelArtifact{Source: registry.SourceLocal, Path: "/x"}, true
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		q    store.ArtifactQuery
		want []string
	}{
		{store.ArtifactQuery{}, []string{"Kept", "passing"}}, {store.ArtifactQuery{Changed: true}, []string{"Kept"}}, {store.ArtifactQuery{After: "kept"}, []string{"passing"}},
		{store.ArtifactQuery{Limit: 1}, []string{"Kept"}}, {store.ArtifactQuery{Source: registry.SourceLocal, Path: "/x"}, []string{"passing"}}, {store.ArtifactQuery{Source: registry.SourceS3}, nil},
	} {
		list, err := s.ListArtifacts(ctx, c.q)
		var ids []string
		for _, a := range list {
			ids = append(ids, a.ModelID)
		}
		if diff := cmp.Diff(c.want, ids); err != nil || diff != "" {
			t.Errorf("%+v: %v\n%s", c.q, err, diff)
		}
	}
	lean, err := s.ListArtifacts(ctx, store.ArtifactQuery{Lean: true, Limit: 1})
	if err != nil || len(lean[0].Files) != 0 || lean[0].Facts.Parameters != 0 || lean[0].Fetched != "abc" {
		t.Errorf("%+v %v", lean, err)
	}
	if at, err := s.ModelsAt(ctx, registry.SourceHuggingFace); err != nil || at["Kept"] != "org/Kept" || len(at) != 2 {
		t.Errorf("%v %v", at, err)
	}
	// What is gone takes it along: a model of an earlier run, and one that is deleted.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openHere(t, path)
	if list, err := s.ListArtifacts(ctx, store.ArtifactQuery{}); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if err := s.DeleteModel(ctx, "Kept", 0, false); err != nil {
		t.Fatal(err)
	}
	putPlain(t, s, "Kept", "default", true)
	if _, ok, err := s.Artifact(ctx, "Kept"); ok || err != nil {
		t.Errorf("a new model of that name inherits what was known: %v", err)
	}
}

func TestFetchingRuntimes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := openHere(t, filepath.Join(t.TempDir(), "r.db"))
	states := []registry.ArtifactState{registry.ArtifactAbsent, registry.ArtifactResolving, registry.ArtifactFetching, registry.ArtifactVerifying, registry.ArtifactPresent, registry.ArtifactFailed}
	for _, st := range states {
		putPlain(t, s, string(st), "default", true)
		if err := s.PutRuntime(ctx, registry.Runtime{ModelID: string(st), State: registry.RuntimeStopped, Artifact: st}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.FetchingRuntimes(ctx)
	var got []string
	for _, rt := range list {
		got = append(got, rt.ModelID)
	}
	if diff := cmp.Diff([]string{"fetching", "resolving", "verifying"}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// A paused operation has not ended: it is among the unfinished, and no pruning takes it.
func TestPausedOperationsStay(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := openHere(t, filepath.Join(t.TempDir(), "r.db"))
	for id, st := range map[string]registry.OperationState{"1": registry.OperationPaused, "2": registry.OperationSucceeded, "3": registry.OperationQueued, "4": registry.OperationFailed} {
		if err := s.PutOperation(ctx, registry.Operation{ID: id, Kind: registry.OperationFetch, Subject: "m", State: st}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PruneOperations(ctx, 0); err != nil {
		t.Fatal(err)
	}
	list, err := s.UnfinishedOperations(ctx)
	if err != nil || len(list) != 2 || list[0].ID != "1" || list[1].ID != "3" {
		t.Errorf("%+v %v", list, err)
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := openHere(t, filepath.Join(t.TempDir(), "r.db"))
	if err := s.EnsureTeam(ctx, "vision"); err != nil {
		t.Fatal(err)
	}
	put := func(team, name, value string, wantNew bool) {
		t.Helper()
		created, err := s.PutSecret(ctx, registry.Secret{Name: name, Team: team, UpdatedBy: "ada"}, value)
		if err != nil || created != wantNew {
			t.Errorf("%s/%s: %v %v", team, name, created, err)
		}
	}
	put("", "hub", "all", true)
	put("vision", "hub", "theirs", true)
	put("vision", "hub", "theirs-2", false)
	put("default", "own", "ours", true)
	if _, err := s.PutSecret(ctx, registry.Secret{Name: "x", Team: "nobody"}, "v"); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("%v", err)
	}
	for _, c := range []struct {
		team, name, want string
		ok               bool
	}{{"vision", "hub", "theirs-2", true}, {"default", "hub", "all", true}, {"default", "own", "ours", true}, {"vision", "own", "", false}, {"", "own", "", false}, {"default", "HUB", "", false}} {
		if got, ok, err := s.SecretValue(ctx, c.team, c.name); err != nil || ok != c.ok || got != c.want {
			t.Errorf("%+v: %q %v %v", c, got, ok, err)
		}
	}
	names := func(teams []string) (out []string) {
		list, err := s.ListSecrets(ctx, teams)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			out = append(out, x.Team+"/"+x.Name)
			if x.UpdatedBy != "ada" || x.UpdatedAt.IsZero() {
				t.Errorf("%+v", x)
			}
		}
		return out
	}
	if diff := cmp.Diff([]string{"/hub", "vision/hub", "default/own"}, names(nil)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/hub", "default/own"}, names([]string{"default"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/hub"}, names([]string{})); diff != "" {
		t.Error(diff)
	}
	if err := s.DeleteSecret(ctx, "default", "hub", false); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("%v", err)
	}
	for id, m := range map[string]registry.Model{
		"theirs": {Team: "vision", CustomLoaderParams: map[string]any{"auth_token": "secret:hub"}},
		"ours":   {Team: "default", CustomLoaderParams: map[string]any{"nested": []any{map[string]any{"api_key": "secret:hub"}}}},
		"other":  {Team: "default", CustomLoaderParams: map[string]any{"auth_token": "secret:hubb", "note": "secret:own"}},
	} {
		m.ModelID, m.SourceType, m.SourcePath, m.ModelFormat = id, registry.SourceHuggingFace, "org/x", registry.FormatGGUF
		if _, _, err := s.PutModel(ctx, m.WithDefaults(), store.PutOptions{Actor: "ada"}); err != nil {
			t.Fatal(err)
		}
	}
	users, err := s.SecretUsers(ctx, nil)
	if diff := cmp.Diff(map[store.SecretKey][]string{{Team: "vision", Name: "hub"}: {"theirs"}, {Name: "hub"}: {"ours"}}, users); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if users, err := s.SecretUsers(ctx, []string{"vision"}); len(users) != 1 || err != nil {
		t.Errorf("%v %v", users, err)
	}
	if err := s.DeleteSecret(ctx, "", "hub", false); registry.CodeOf(err) != registry.CodeConflict || !strings.Contains(err.Error(), "ours") || strings.Contains(err.Error(), "theirs") {
		t.Errorf("a secret that is used: %v", err)
	}
	if err := s.DeleteSecret(ctx, "vision", "hub", true); err != nil {
		t.Error(err)
	}
	if users, err := s.SecretUsers(ctx, nil); len(users[store.SecretKey{Name: "hub"}]) != 2 || err != nil {
		t.Errorf("without its own, the team uses that of every team: %v %v", users, err)
	}
	if err := s.DeleteModel(ctx, "theirs", 0, false); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteTeam(ctx, "vision"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/hub", "default/own"}, names(nil)); diff != "" {
		t.Errorf("the secrets of a team that is gone:\n%s", diff)
	}
	if err := s.SetSetting(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteSetting(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := s.Setting(ctx, "k"); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}
