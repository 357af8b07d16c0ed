package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// kit is an engine that can be installed: each version is a copy of the fake engine's program.
type kit struct {
	name, dir, tag string
	offered        atomic.Value  // string
	begun, hold    chan struct{} // an installation tells that it has begun and waits, if not nil
	lends          *kit          // whose files it needs
	breaks         error         // what an installation ends in
}

func (k *kit) Info() loaders.Info {
	i := fake.New(fake.Options{}).Info()
	i.Name, i.Title, i.Experimental, i.HowToGet = k.name, strings.ToUpper(k.name), false, "Install it."
	return i
}

func (k *kit) Offered() string { return k.offered.Load().(string) }

// program is the newest that is there.
func (k *kit) program() string {
	list, err := filepath.Glob(filepath.Join(k.dir, k.name, "*", "engine"))
	if err != nil || len(list) == 0 {
		return ""
	}
	return slices.MaxFunc(list, func(a, b string) int {
		if olderVersion(filepath.Base(filepath.Dir(a)), filepath.Base(filepath.Dir(b))) {
			return -1
		}
		return 1
	})
}

func (k *kit) loader() *fake.Loader {
	return fake.New(fake.Options{Path: k.program(), TagPrefix: k.tag})
}

func (k *kit) Check(ctx context.Context) (loaders.Version, error) {
	v, err := k.loader().Check(ctx)
	v.Version = filepath.Base(filepath.Dir(v.Path))
	return v, err
}

func (k *kit) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	return k.loader().Load(ctx, spec, report)
}

func (k *kit) Install(ctx context.Context, dir string, report func(registry.Progress)) error {
	report(registry.Progress{Stage: registry.StageFetch, Msg: "Copying"})
	if k.hold != nil {
		k.begun <- struct{}{}
		select {
		case <-k.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if k.breaks != nil {
		return k.breaks
	}
	home := filepath.Join(dir, k.name, k.Offered())
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	from, err := os.Open(engineBinary)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(filepath.Join(home, "engine"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

func (k *kit) Borrows(folder string) bool {
	return k.lends != nil && strings.HasPrefix(k.lends.program(), folder+"/") && k.program() != ""
}

// workshop is a manager with two engines that can be installed, and none is.
func workshop(t *testing.T) (r *rig, one, two *kit) {
	t.Helper()
	r = newRig(t, func(o *Options) {
		o.EngineDir = filepath.Join(o.DataDir, "engines")
		tag := o.Store.InstallationID()
		one = &kit{name: "llamacpp", dir: o.EngineDir, tag: tag}
		two = &kit{name: "ollama", dir: o.EngineDir, tag: tag}
		one.offered.Store("1.9")
		two.offered.Store("1")
		o.Loaders = append([]loaders.Loader{one, two}, o.Loaders...)
	})
	return r, one, two
}

func (r *rig) install(name string, want registry.OperationState) registry.Operation {
	r.t.Helper()
	op, err := r.InstallEngine(r.ctx(), name, "ada")
	if err != nil {
		r.t.Fatal(err)
	}
	return r.end(op, want)
}

func (r *rig) engineNow(name string) registry.EngineStatus {
	r.t.Helper()
	st, err := r.Engine(r.ctx(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

func refused(t *testing.T, err error, code registry.Code, says ...string) {
	t.Helper()
	if registry.CodeOf(err) != code {
		t.Fatalf("refused with %v, want %s", err, code)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("it says %q, without %q", err, s)
		}
	}
}

func TestInstallUpgradeRemove(t *testing.T) {
	r, one, two := workshop(t)
	st := r.engineNow("llamacpp")
	if st.Usable || !st.Installable || st.Offered != "1.9" || len(st.Installed) != 0 {
		t.Fatalf("before the installation: %+v", st)
	}
	_, err := r.RemoveEngine(r.ctx(), "llamacpp", "", "ada")
	refused(t, err, registry.CodeBadState, "is not installed")

	seen := r.Bus.Subscribe(events.Filter{Kinds: []registry.EventKind{registry.EventEngine}})
	defer seen.Close()
	r.install("llamacpp", registry.OperationSucceeded)
	if _, err := seen.Next(r.ctx()); err != nil {
		t.Fatalf("nobody was told: %v", err)
	}
	st = r.engineNow("llamacpp")
	if !st.Usable || st.Version != "1.9" || st.Upgrade != "" || len(st.Installed) != 1 || !st.Installed[0].InUse || st.Installed[0].Bytes < 1<<20 {
		t.Fatalf("after the installation: %+v", st)
	}

	// A newer one is offered; while a model runs on the old one, that stays.
	one.offered.Store("1.10")
	if st = r.engineNow("llamacpp"); st.Upgrade != "1.10" {
		t.Fatalf("no upgrade is offered: %+v", st)
	}
	r.model("busy", nil, func(m *registry.Model) { m.Engine = "llamacpp" })
	r.ready("busy")
	if op := r.install("llamacpp", registry.OperationSucceeded); !strings.Contains(op.Outcome, "1.9 stays: busy runs on it") {
		t.Errorf("the upgrade ends with %q", op.Outcome)
	}
	st = r.engineNow("llamacpp")
	if st.Version != "1.10" || len(st.Installed) != 2 || st.Installed[0].Version != "1.10" || !st.Installed[0].InUse || st.Installed[1].InUse {
		t.Fatalf("after the upgrade: %+v", st.Installed)
	}
	_, err = r.RemoveEngine(r.ctx(), "llamacpp", "1.9", "ada")
	refused(t, err, registry.CodeConflict, "busy runs on it", "Unload it first")
	_, err = r.RemoveEngine(r.ctx(), "llamacpp", "1.8", "ada")
	refused(t, err, registry.CodeNotFound, "1.8")
	r.end(r.unload("busy"), registry.OperationSucceeded)
	op, err := r.RemoveEngine(r.ctx(), "llamacpp", "1.9", "ada")
	if err != nil {
		t.Fatal(err)
	}
	if op = r.end(op, registry.OperationSucceeded); !strings.Contains(op.Outcome, "freed") {
		t.Errorf("the removal ends with %q", op.Outcome)
	}

	// Another engine needs its files.
	two.lends = one
	r.install("ollama", registry.OperationSucceeded)
	_, err = r.RemoveEngine(r.ctx(), "llamacpp", "", "ada")
	refused(t, err, registry.CodeConflict, "OLLAMA uses programs of it")
	for _, name := range []string{"ollama", "llamacpp"} {
		op, err := r.RemoveEngine(r.ctx(), name, "", "ada")
		if err != nil {
			t.Fatal(err)
		}
		r.end(op, registry.OperationSucceeded)
		if st := r.engineNow(name); st.Usable || len(st.Installed) > 0 {
			t.Errorf("after its removal: %+v", st)
		}
	}
	if left, err := os.ReadDir(r.EngineDir); err != nil || len(left) > 0 {
		t.Errorf("left on the disk: %v, %v", left, err)
	}
}

func TestAnUpgradeRemovesTheOldOne(t *testing.T) {
	r, one, _ := workshop(t)
	r.install("llamacpp", registry.OperationSucceeded)
	one.offered.Store("2.0")
	op := r.install("llamacpp", registry.OperationSucceeded)
	if st := r.engineNow("llamacpp"); len(st.Installed) != 1 || st.Version != "2.0" || !strings.Contains(op.Outcome, "1.9 was removed") {
		t.Errorf("%q leaves %+v", op.Outcome, st.Installed)
	}
}

// TestWhatRunsIsNotTakenAway has a model loaded after a removal or an update was asked for, and before it is done.
func TestWhatRunsIsNotTakenAway(t *testing.T) {
	r, one, _ := workshop(t)
	r.install("llamacpp", registry.OperationSucceeded)
	r.model("busy", nil, func(m *registry.Model) { m.Engine = "llamacpp" })
	r.ready("busy")
	folder := filepath.Join(r.EngineDir, "llamacpp")
	job := r.newOperation(registry.OperationRemove, "llamacpp", "ada", "asked for", registry.RemoveStages)
	_, err := r.removeUnused(one, "LLAMACPP", []string{folder}, job)
	refused(t, err, registry.CodeConflict, "LLAMACPP cannot be removed: busy runs on it")
	if one.program() == "" {
		t.Error("it is gone all the same")
	}
	one.breaks = registry.Errorf(registry.CodeConflict, "process 1 is in the way")
	if op := r.install("llamacpp", registry.OperationFailed); op.Error.Code != registry.CodeConflict ||
		!strings.Contains(op.Error.Msg, "process 1 is in the way") || !strings.Contains(op.Error.Msg, "busy runs on it") {
		t.Errorf("the update ends with %+v", op.Error)
	}
}

func TestOneJobAtATime(t *testing.T) {
	r, one, _ := workshop(t)
	one.begun, one.hold = make(chan struct{}), make(chan struct{})
	first, err := r.InstallEngine(r.ctx(), "llamacpp", "ada")
	if err != nil {
		t.Fatal(err)
	}
	<-one.begun
	again, err := r.InstallEngine(r.ctx(), "llamacpp", "bob")
	if err != nil || again.ID != first.ID {
		t.Errorf("a second call gives %s, %v, want %s", again.ID, err, first.ID)
	}
	_, err = r.SelfTest(r.ctx(), "llamacpp", SelfTestOptions{Actor: "ada"})
	refused(t, err, registry.CodeBusy, "is being installed")
	if _, err := r.CancelOperation(r.ctx(), first.ID, "ada"); err != nil {
		t.Fatal(err)
	}
	r.end(first, registry.OperationCancelled)
	one.hold, one.breaks = nil, registry.Errorf(registry.CodeUnavailable, "there is no network")
	if op := r.install("llamacpp", registry.OperationFailed); op.Error == nil || op.Error.Msg != "there is no network" {
		t.Errorf("it failed with %+v", op.Error)
	}
	_, err = r.InstallEngine(r.ctx(), "fake", "ada")
	refused(t, err, registry.CodeUnsupported, "cannot be installed from here")
	_, err = r.InstallEngine(r.ctx(), "nothing", "ada")
	refused(t, err, registry.CodeNotFound, "llamacpp and ollama")
}

// TestSelfTest tries an engine whose models may lie in one folder only, which is not the self-test's.
func TestSelfTest(t *testing.T) {
	r, _, _ := workshop(t)
	if _, err := r.SetRootFolders(r.ctx(), []string{filepath.Join(r.dir, "models")}); err != nil {
		t.Fatal(err)
	}
	op, err := r.SelfTest(r.ctx(), "llamacpp", SelfTestOptions{Actor: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	op = r.end(op, registry.OperationFailed)
	if op.Stages[0].State != registry.StageFailed || op.Error.Code != registry.CodeUnavailable {
		t.Errorf("an engine that is not here: %+v, %+v", op.Stages, op.Error)
	}
	r.install("llamacpp", registry.OperationSucceeded)
	if op, err = r.SelfTest(r.ctx(), "llamacpp", SelfTestOptions{Actor: "ada", Device: registry.DeviceCPU}); err != nil {
		t.Fatal(err)
	}
	op = r.end(op, registry.OperationSucceeded)
	for i, says := range []string{"LLAMACPP 1.9 at ", "of random weights as gguf", "Ready in main memory", "Answered ", "came back"} {
		if s := op.Stages[i]; s.State != registry.StageDone || !strings.Contains(s.Msg, says) || s.EndedAt.IsZero() {
			t.Errorf("the step %s is %s and says %q, want %q", s.Name, s.State, s.Msg, says)
		}
	}
	if op.Released == nil || !strings.Contains(op.Outcome, "LLAMACPP works") {
		t.Errorf("it ends with %q, released %+v", op.Outcome, op.Released)
	}
	r.nothingOfSelfTests()
}

// nothingOfSelfTests checks that no model and no file of a self-test is left.
func (r *rig) nothingOfSelfTests() {
	r.t.Helper()
	page, err := r.List(r.ctx(), store.ListQuery{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range page.Items {
		if strings.HasPrefix(l.ModelID, "self-test/") {
			r.t.Errorf("the model %s is left", l.ModelID)
		}
	}
	if left, err := os.ReadDir(r.selfTestDir()); err == nil && len(left) > 0 {
		r.t.Errorf("files are left: %v", left)
	}
}

func TestSelfTestIsCancelled(t *testing.T) {
	r, _, _ := workshop(t)
	r.install("llamacpp", registry.OperationSucceeded)
	sub := r.Bus.Subscribe(events.Filter{Kinds: []registry.EventKind{registry.EventModelStatus}})
	defer sub.Close()
	op, err := r.SelfTest(r.ctx(), "llamacpp", SelfTestOptions{Actor: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Next(r.ctx()); err != nil { // its model is being loaded
		t.Fatal(err)
	}
	if _, err := r.CancelOperation(r.ctx(), op.ID, "ada"); err != nil {
		t.Fatal(err)
	}
	got, err := r.Await(r.ctx(), op.ID)
	if err != nil || got.State != registry.OperationCancelled && got.State != registry.OperationSucceeded {
		t.Errorf("it is %s, %v", got.State, err)
	}
	r.nothingOfSelfTests()
}

func TestEngineUses(t *testing.T) {
	r, _, _ := workshop(t)
	r.install("ollama", registry.OperationSucceeded)
	r.model("by-name", nil, func(m *registry.Model) { m.Engine = "ollama" })
	r.model("by-auto", nil, func(m *registry.Model) { m.Engine = registry.EngineAuto })
	r.model("other", nil)
	r.model("theirs", nil, func(m *registry.Model) { m.Engine, m.Team = "ollama", "secret" })
	r.ready("by-auto")
	uses, err := r.EngineUses(r.ctx(), "ollama", []string{registry.DefaultTeam})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(uses); got != "[{by-auto default ready false} {by-name default stopped true}]" {
		t.Errorf("it is used by %s", got)
	}
}

func TestSelfTestOfServices(t *testing.T) {
	r, m, down := service(t, time.Hour)
	test := func(want registry.OperationState) registry.Operation {
		t.Helper()
		op, err := r.SelfTest(r.ctx(), "external", SelfTestOptions{Actor: "ada"})
		if err != nil {
			t.Fatal(err)
		}
		return r.end(op, want)
	}
	if op := test(registry.OperationFailed); op.Error.Code != registry.CodeBadState {
		t.Errorf("with no service it says %+v", op.Error)
	}
	if _, _, err := r.Register(r.ctx(), m, PutOptions{Actor: "root", Persist: true, Admin: true}); err != nil {
		t.Fatal(err)
	}
	if op := test(registry.OperationSucceeded); !strings.Contains(op.Outcome, m.ModelID+" answered in") {
		t.Errorf("it says %q", op.Outcome)
	}
	r.state(m.ModelID, registry.RuntimeStopped) // it was loaded for the test only
	r.ready(m.ModelID)
	test(registry.OperationSucceeded)
	r.state(m.ModelID, registry.RuntimeReady)
	down.Store(true)
	if op := test(registry.OperationFailed); !strings.Contains(op.Error.Msg, "1 of 1 services") || !strings.Contains(op.Error.Msg, m.ModelID) {
		t.Errorf("it says %+v", op.Error)
	}
	_, err := r.SelfTest(r.ctx(), "external", SelfTestOptions{Model: "nowhere"})
	refused(t, err, registry.CodeNotFound)
	r.model("here", nil)
	_, err = r.SelfTest(r.ctx(), "external", SelfTestOptions{Model: "here"})
	refused(t, err, registry.CodeInvalid, "runs at an external service")
}
