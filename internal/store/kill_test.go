package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// The test binary is its own writer: with these in its environment it writes until it is killed.
const (
	writerPath  = "LLMM_STORE_TEST_WRITER_PATH"
	writerRound = "LLMM_STORE_TEST_WRITER_ROUND"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerPath); path != "" {
		if err := writeUntilKilled(path, os.Getenv(writerRound)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// writeUntilKilled changes the registry from several goroutines and prints a line for each acknowledged change, in one
// write, so that a line is there whole or not at all.
func writeUntilKilled(path, round string) error {
	ctx := context.Background()
	fmt.Println("opening - 0")
	s, err := store.Open(ctx, store.Options{Path: path})
	if err != nil {
		return err
	}
	errs := make(chan error)
	for w := range 4 {
		go func() {
			for n := 0; ; n++ {
				if err := writeOne(ctx, s, fmt.Sprintf("r%s-w%d-n%d", round, w, n), n); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

func writeOne(ctx context.Context, s *store.Store, id string, n int) error {
	m := registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: "/x", ModelFormat: registry.FormatGGUF,
		Description: strings.Repeat(id+" ", 20)}
	if _, _, err := s.PutModel(ctx, m, store.PutOptions{Persist: true, ToManifest: true}); err != nil {
		return err
	}
	fmt.Println("model", id, 1)
	rt := registry.Runtime{ModelID: id, State: registry.RuntimeReady, Generation: int64(n + 1), Handle: &registry.Handle{PID: n + 1}}
	if err := s.PutRuntime(ctx, rt); err != nil {
		return err
	}
	fmt.Println("runtime", id, n+1)
	if err := s.PutOperation(ctx, registry.Operation{ID: id, State: registry.OperationSucceeded, Outcome: strconv.Itoa(n + 1)}); err != nil {
		return err
	}
	fmt.Println("operation", id, n+1)
	m.Description = "changed"
	if _, _, err := s.PutModel(ctx, m, store.PutOptions{Persist: true}); err != nil {
		return err
	}
	fmt.Println("model", id, 2)
	if err := writeAccess(ctx, s, id, n); err != nil {
		return err
	}
	if n%7 != 6 {
		return nil
	}
	if err := s.DeleteModel(ctx, id, 2, true); err != nil {
		return err
	}
	fmt.Println("deleted", id, 0)
	return nil
}

// writeAccess writes what decides who may do what, and what an admin sets: of each kind one, with the number where there
// is room for it.
func writeAccess(ctx context.Context, s *store.Store, id string, n int) error {
	for _, w := range []struct {
		kind  string
		write func() error
	}{
		{"account", func() error {
			return s.CreateUser(ctx, registry.User{ID: "u-" + id, Name: id, PasswordHash: strconv.Itoa(n + 1)})
		}},
		{"token", func() error {
			return s.CreateToken(ctx, registry.Token{ID: "t-" + id, UserID: "u-" + id, Name: strconv.Itoa(n + 1), Prefix: "p", Hash: []byte(id)})
		}},
		{"team", func() error { return s.EnsureTeam(ctx, id) }},
		{"member", func() error {
			return s.SetMember(ctx, registry.Member{Team: id, UserID: "u-" + id, Role: registry.RoleMaintainer})
		}},
		{"secret", func() error {
			_, err := s.PutSecret(ctx, registry.Secret{Team: id, Name: "s"}, strconv.Itoa(n+1))
			return err
		}},
		{"setting", func() error { return s.SetSetting(ctx, "k-"+id, strconv.Itoa(n+1)) }},
	} {
		if err := w.write(); err != nil {
			return fmt.Errorf("%s: %w", w.kind, err)
		}
		fmt.Println(w.kind, id, n+1)
	}
	return nil
}

// foundAccess returns the number with which something that writeAccess wrote is there, 0 when it is not.
func foundAccess(ctx context.Context, s *store.Store, a ack) (int64, error) {
	var text string
	var err error
	switch a.kind {
	case "account":
		var u registry.User
		u, err = s.User(ctx, "u-"+a.id)
		text = u.PasswordHash
	case "token":
		var t registry.Token
		t, err = s.TokenByHash(ctx, []byte(a.id))
		text = t.Name
	case "team":
		var teams []registry.Team
		teams, err = s.ListTeams(ctx)
		if slices.ContainsFunc(teams, func(t registry.Team) bool { return t.Name == a.id }) {
			return a.n, err
		}
	case "member":
		var members []registry.Member
		members, err = s.Members(ctx, a.id)
		if len(members) == 1 && members[0].Role == registry.RoleMaintainer {
			return a.n, err
		}
	case "secret":
		text, _, err = s.SecretValue(ctx, a.id, "s")
	case "setting":
		text, _, err = s.Setting(ctx, "k-"+a.id)
	}
	n, _ := strconv.ParseInt(text, 10, 64) // "" is not there
	return n, err
}

// ack is a change that the writer was told is done: of what kind, to which id, with which number.
type ack struct {
	kind, id string
	n        int64
}

// TestKill kills a writing process a hundred times on the same file, each time at another moment, and finds every
// acknowledged change afterwards.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	total := 0
	var all []ack
	for round := range 100 {
		acks := killWriter(t, path, round, rand.IntN(60))
		all = append(all, acks...)
		total += len(acks)
		verify(t, path, acks)
	}
	verify(t, path, all)
	t.Logf("%d changes were acknowledged over 100 kills", total)
}

// killWriter starts a writer, kills it when it has acknowledged n changes while it goes on writing (with n 0: while it
// opens the file), and returns all that it acknowledged before it died.
func killWriter(t *testing.T, path string, round, n int) []ack {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), writerPath+"="+path, writerRound+"="+strconv.Itoa(round))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var acks []ack
	var kill sync.Once
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var a ack
		if _, err := fmt.Sscan(lines.Text(), &a.kind, &a.id, &a.n); err != nil {
			t.Fatalf("the writer said %q: %v", lines.Text(), err)
		}
		if a.kind != "opening" {
			acks = append(acks, a)
		}
		if len(acks) >= n {
			kill.Do(func() { must(t, cmd.Process.Kill()) })
		}
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("the writer ended by itself: %v\n%s", err, stderr.String())
	}
	return acks
}

// verify opens the file as a restarted server does and looks for every acknowledged change.
func verify(t *testing.T, path string, acks []ack) {
	t.Helper()
	ctx := t.Context()
	s, err := store.Open(ctx, store.Options{Path: path})
	must(t, err)
	if verdict, err := store.IntegrityCheck(s); verdict != "ok" || err != nil {
		t.Fatalf("the file is damaged: %s, %v", verdict, err)
	}
	pending, err := s.ManifestPending(ctx)
	must(t, err)
	inOutbox := map[string]bool{}
	for _, c := range pending {
		inOutbox[c.ModelID] = true
	}
	deleted := map[string]bool{}
	for _, a := range acks {
		deleted[a.id] = deleted[a.id] || a.kind == "deleted"
	}
	for _, a := range acks {
		var got int64
		switch {
		case a.kind == "operation":
			op, err := s.Operation(ctx, a.id)
			must(t, err)
			got, err = strconv.ParseInt(op.Outcome, 10, 64)
			must(t, err)
		case slices.Contains([]string{"account", "token", "team", "member", "secret", "setting"}, a.kind):
			got, err = foundAccess(ctx, s, a)
			must(t, err)
		case deleted[a.id]:
			if _, err := s.Model(ctx, a.id); registry.CodeOf(err) != registry.CodeNotFound {
				t.Fatalf("the deleted model %s is back: %v", a.id, err)
			}
			continue
		case a.kind == "model":
			rec, err := s.Model(ctx, a.id)
			if registry.CodeOf(err) == registry.CodeNotFound && mayBeDeleted(a.id) && inOutbox[a.id] {
				continue // deleted, and killed before it could say so
			}
			must(t, err)
			got = rec.Version
			if !inOutbox[a.id] {
				t.Fatalf("the model %s is there and its entry for the manifest is not", a.id)
			}
		case a.kind == "runtime":
			rt, err := s.Runtime(ctx, a.id)
			must(t, err)
			if _, err := s.Model(ctx, a.id); registry.CodeOf(err) == registry.CodeNotFound && mayBeDeleted(a.id) {
				continue
			}
			got = rt.Generation
		}
		if got < a.n {
			t.Fatalf("%s of %s: acknowledged %d, found %d", a.kind, a.id, a.n, got)
		}
	}
	must(t, s.Close())
}

// mayBeDeleted reports whether the writer deletes this model in the end.
func mayBeDeleted(id string) bool {
	n, err := strconv.Atoi(id[strings.LastIndex(id, "-n")+2:])
	return err == nil && n%7 == 6
}
