package manager

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// What a victim says.
const (
	victimBegins = "victim begins to load"
	victimReady  = "victim is there"
)

// victim is this test binary playing a server: it starts a manager in dir, brings its models to the states that the test
// wants and waits to be killed.
func victim(dir string) int {
	t := &victimTB{}
	var d *sourcetest.Depot
	r := rigIn(t, dir, func(o *Options) { withDepot(&d)(o); o.DrainTimeout = time.Hour })
	r.start()
	fast, hang := map[string]any{}, map[string]any{"fault": "hang_loading"}
	pinned := func(m *registry.Model) { m.Pinned = true }
	r.model("ready", fast)
	r.model("ready-pinned", fast, pinned)
	r.model("dead", fast)
	r.model("dead-pinned", fast, pinned)
	r.model("starting", hang)
	r.model("draining", fast)
	r.model("stopping", map[string]any{"ignore_sigterm": true, "grandchild": true})
	r.model("idle", fast)
	fmt.Println(victimBegins)
	for _, id := range []string{"ready", "ready-pinned", "dead", "dead-pinned", "draining", "stopping"} {
		r.ready(id)
	}
	passing := registry.Model{ModelID: "passing", SourceType: registry.SourceLocal, SourcePath: r.weights(), ModelFormat: registry.FormatGGUF, Engine: "fake"}
	if _, _, err := r.Register(r.ctx(), passing, PutOptions{Actor: "ada"}); err != nil {
		t.Fatal(err)
	}
	r.ready("passing")
	if _, err := r.Acquire(r.ctx(), "draining", "ada"); err != nil { // never released
		t.Fatal(err)
	}
	r.unload("draining")
	r.state("draining", registry.RuntimeDraining)
	r.unload("stopping")
	r.state("stopping", registry.RuntimeStopping)
	r.mustLoad("starting", LoadOptions{Actor: "ada"})
	r.control("starting")
	for _, id := range []string{"fetching", "paused"} {
		gate := d.Hold("org/" + id)
		r.fetchable(id, "org/"+id)
		op := r.mustFetch(id)
		for range depotParts / 2 {
			gate <- struct{}{}
		}
		r.during(op, registry.StageFetch, "moves", func(s registry.Stage) bool { return s.Done > 0 })
		if id == "paused" {
			if _, err := r.PauseOperation(r.ctx(), op.ID, "ada"); err != nil {
				t.Fatal(err)
			}
		}
	}
	fmt.Println(victimReady)
	select {}
}

// victimTB is what a rig needs of a test, in a process that is none.
type victimTB struct{ testing.TB }

func (*victimTB) Helper()        {}
func (*victimTB) Cleanup(func()) {}
func (*victimTB) Fatal(a ...any) { fmt.Println(a...); os.Exit(1) }
func (*victimTB) Fatalf(f string, a ...any) {
	fmt.Printf(f+"\n", a...)
	os.Exit(1)
}
func (*victimTB) Errorf(f string, a ...any) { fmt.Printf(f+"\n", a...) }

// runVictim runs a victim in dir until it is where the test wants it, or until it says line by line that it is not.
func runVictim(t *testing.T, dir string, until func(line string) bool) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), envVictim+"="+dir, envEngine+"="+engineBinary)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	there := false
	for lines := bufio.NewScanner(out); !there && lines.Scan(); {
		if there = until(lines.Text()); !there {
			t.Log(lines.Text())
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it says that it was killed
	if !there {
		t.Fatal("the victim did not come to where it should be killed")
	}
}

// look reads what a killed server left in its registry.
func look(t *testing.T, dir string, read func(*store.Store)) {
	t.Helper()
	st, err := store.Open(context.Background(), store.Options{Path: dir + "/registry.db"})
	if err != nil {
		t.Fatal(err)
	}
	read(st)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestKilledServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	runVictim(t, dir, func(line string) bool { return line == victimReady })

	before := map[string]registry.Runtime{}
	look(t, dir, func(st *store.Store) {
		active, err := st.ActiveRuntimes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, rt := range active {
			before[rt.ModelID] = rt
		}
		for id, want := range map[string]registry.RuntimeState{"ready": registry.RuntimeReady, "starting": registry.RuntimeStarting, "draining": registry.RuntimeDraining, "stopping": registry.RuntimeStopping} {
			if before[id].State != want || before[id].Handle == nil {
				t.Fatalf("%s was left %s", id, before[id].State)
			}
		}
		for _, id := range []string{"dead", "dead-pinned"} { // their engines end while no server is there
			tagged, err := process.FindTagged(st.InstallationID())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range tagged {
				if p.InstanceID == before[id].InstanceID {
					if err := process.KillGroup(context.Background(), st.InstallationID(), p); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	})

	var d *sourcetest.Depot
	r := rigIn(t, dir, withDepot(&d))
	r.pausedAreFine = true
	r.start()
	defer r.close(false)
	for _, id := range []string{"ready", "ready-pinned"} {
		rt := r.state(id, registry.RuntimeReady)
		if was := before[id]; rt.Handle.PID != was.Handle.PID || rt.InstanceID != was.InstanceID || rt.Generation != was.Generation {
			t.Errorf("%s was not taken over: %+v, was %+v", id, rt, was)
		}
		if code, err := r.ask(id); code != 200 {
			t.Errorf("%s answers %d, %v", id, code, err)
		}
	}
	for _, row := range r.ledger.all() {
		if row.ModelID == "ready" && (row.Bytes == 0 || row.Taken == 0 || row.PID != before["ready"].Handle.PID) {
			t.Errorf("the promise of a taken over instance: %+v", row)
		}
	}
	// A pinned one is loaded again, whatever happened to its engine.
	if rt := r.state("dead-pinned", registry.RuntimeReady); rt.Generation != before["dead-pinned"].Generation+1 {
		t.Errorf("dead-pinned: %+v", rt)
	}
	for _, id := range []string{"dead", "starting", "draining", "stopping", "idle"} {
		if rt := r.state(id, registry.RuntimeStopped); rt.Handle != nil || rt.Device != "" || rt.Desired == registry.RuntimeReady {
			t.Errorf("%s: %+v", id, rt)
		}
	}
	known := map[string]bool{}
	for _, row := range r.ledger.all() {
		known[row.InstanceID] = true
	}
	if len(known) != 3 {
		t.Errorf("promises: %+v", r.ledger.all())
	}
	tagged, err := process.FindTagged(r.store.InstallationID())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tagged {
		if !known[p.InstanceID] {
			t.Errorf("an engine that belongs to nobody: %+v", p)
		}
	}
	ops, _, err := r.Operations(r.ctx(), store.OperationQuery{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		if !op.State.Final() && op.Subject != "dead-pinned" && op.Kind != registry.OperationFetch {
			t.Errorf("an operation that never ends: %+v", op)
		}
		if op.Subject == "starting" && (op.State != registry.OperationFailed || op.Outcome == "" || op.Error == nil) {
			t.Errorf("the load that was under way: %+v", op)
		}
	}
	// A fetch goes on where it was, in the same operation; a paused one rests.
	r.artifactIs("fetching", registry.ArtifactPresent)
	if n := d.Parts("org/fetching"); n != depotParts/2 {
		t.Errorf("%d parts were downloaded after the kill, want %d", n, depotParts/2)
	}
	for id, want := range map[string]registry.OperationState{"fetching": registry.OperationSucceeded, "paused": registry.OperationPaused} {
		ops, _, err := r.Operations(r.ctx(), store.OperationQuery{Subject: id})
		if err != nil || len(ops) != 1 {
			t.Fatalf("%+v %v", ops, err)
		}
		if want.Final() {
			r.end(ops[0], want)
		} else if ops[0].State != want {
			t.Errorf("%s: %+v", id, ops[0])
		}
	}
	if n := d.Fetches("org/paused"); n != 0 {
		t.Error("a paused fetch went on by itself")
	}
	// What was registered for that run only is gone, and a new one of its name is not loaded.
	if _, err := r.Get(r.ctx(), "passing"); registry.CodeOf(err) != registry.CodeNotFound {
		t.Errorf("passing: %v", err)
	}
	r.model("passing", nil)
	if l, err := r.Get(r.ctx(), "passing"); err != nil || l.Status != registry.StatusNotLoaded {
		t.Errorf("a new model seems to be %s: %v", l.Status, err)
	}
	r.ready("passing")
	r.end(r.unload("ready"), registry.OperationSucceeded)
	r.ready("ready")
}

// Killed at any moment of its start: whatever the moment, the next one cleans up and works.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for round := range 6 {
		after := time.Duration(round) * 60 * time.Millisecond
		begun := time.Time{}
		runVictim(t, dir, func(line string) bool {
			if line == victimBegins {
				begun = time.Now()
				time.Sleep(after) // the moment of the kill, not a wait for anything
				return true
			}
			return false
		})
		t.Logf("killed %v after it began", time.Since(begun))
	}
	r := rigIn(t, dir, nil)
	r.start()
	defer r.close(false)
	for _, row := range r.ledger.all() {
		if code, err := r.ask(row.ModelID); code != 200 {
			t.Errorf("%s was taken over and answers %d, %v", row.ModelID, code, err)
		}
	}
	tagged, err := process.FindTagged(r.store.InstallationID())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tagged {
		if !strings.Contains(fmt.Sprint(r.ledger.all()), p.InstanceID) {
			t.Errorf("an engine that belongs to nobody: %+v", p)
		}
	}
	r.ready("ready")
}

func TestCloseAndKeep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := rigIn(t, dir, nil)
	r.start()
	r.model("m", nil)
	r.model("pinned", nil, func(m *registry.Model) { m.Pinned = true })
	r.model("hangs", map[string]any{"fault": "hang_loading"})
	r.ready("m")
	was := r.ready("pinned")
	r.mustLoad("hangs", LoadOptions{Actor: "ada"})
	r.control("hangs")
	waiting := make(chan error, 1)
	go func() {
		_, err := r.Acquire(context.Background(), "hangs", "ada") // has no end of its own
		waiting <- err
	}()
	r.close(true)
	if err := <-waiting; err == nil {
		t.Error("who waited for a load is told nothing")
	}

	r = rigIn(t, dir, nil)
	r.start()
	if rt := r.state("pinned", registry.RuntimeReady); rt.Handle.PID != was.Handle.PID {
		t.Errorf("not taken over: %+v", rt)
	}
	r.state("hangs", registry.RuntimeStopped)
	if code, err := r.ask("m"); code != 200 {
		t.Errorf("%d %v", code, err)
	}
	r.close(false) // nothing is left
	if _, err := r.Load(context.Background(), "m", LoadOptions{}); registry.CodeOf(err) != registry.CodeUnavailable && registry.CodeOf(err) != registry.CodeTimeout {
		t.Errorf("a load after the end: %v", err)
	}

	// A pinned model that was stopped with the server is loaded again, another one is not.
	r = rigIn(t, dir, nil)
	r.start()
	defer r.close(false)
	r.state("pinned", registry.RuntimeReady)
	if rt := r.state("m", registry.RuntimeStopped); rt.Desired != registry.RuntimeStopped {
		t.Errorf("%+v", rt)
	}
}

// Requests that are still being answered do not keep an engine alive when the time to shut down is over.
func TestCloseCutsOffRequests(t *testing.T) {
	t.Parallel()
	r := rigIn(t, t.TempDir(), func(o *Options) { o.DrainTimeout = time.Hour })
	r.start()
	r.model("m", nil)
	r.ready("m")
	if _, err := r.Acquire(r.ctx(), "m", "ada"); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.Close(ended, false) // that the time was over
	r.work.Wait()
	if left, err := process.FindTagged(r.store.InstallationID()); err != nil || len(left) > 0 {
		t.Errorf("engines are left: %+v, %v", left, err)
	}
	if err := r.store.Close(); err != nil {
		t.Error(err)
	}
}
