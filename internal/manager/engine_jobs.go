package manager

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// engineJob is what is under way with an engine: an installation, a removal or a self-test. There is one at a time.
type engineJob struct {
	track  *tracker
	cancel context.CancelFunc
}

// engineWords say what is under way, for who asks for something else meanwhile.
var engineWords = map[registry.OperationKind]string{
	registry.OperationInstall: "is being installed", registry.OperationRemove: "is being removed", registry.OperationSelfTest: "is being tested",
}

// beginEngineJob runs a job with an engine in the background. One of the same kind that is under way is joined, one of
// another kind is CodeBusy.
func (m *Manager) beginEngineJob(kind registry.OperationKind, info loaders.Info, actor, cause string, stages []registry.StageName, run func(ctx context.Context, t *tracker) (string, error)) (registry.Operation, error) {
	if m.isClosed() {
		return registry.Operation{}, errClosing()
	}
	t := m.newOperation(kind, info.Name, actor, cause, stages)
	ctx, cancel := context.WithCancel(m.ctx)
	got, taken := m.jobs.LoadOrStore(info.Name, &engineJob{t, cancel})
	if taken {
		cancel()
		m.live.Delete(t.op.ID)
		under := got.(*engineJob).track.snapshot()
		if under.Kind != kind {
			return registry.Operation{}, registry.Errorf(registry.CodeBusy, "%s %s; try again when that has ended", info.Title, engineWords[under.Kind])
		}
		return under, nil
	}
	if err := t.save(); err != nil {
		cancel()
		m.jobs.Delete(info.Name)
		m.live.Delete(t.op.ID)
		return registry.Operation{}, err
	}
	m.goWork(func() {
		defer cancel()
		outcome, err := run(ctx, t)
		m.jobs.Delete(info.Name)
		if ctx.Err() != nil && err != nil {
			err, outcome = context.Canceled, "Cancelled."
		}
		m.ForgetEngines()
		t.finish(err, outcome)
		if l, err := m.engine(info.Name); err == nil && m.ctx.Err() == nil {
			m.bus.Publish(registry.EventEngine, info.Name, m.engineStatus(m.ctx, m.ctx, l))
		}
	})
	return t.snapshot(), nil
}

// InstallEngine installs an engine in the background, or upgrades it: the version that this program offers is put beside
// what is there, and older ones are removed if nothing runs on them. A second call while it runs gives the same operation.
// CodeNotFound for a name that there is none of, CodeUnsupported when it cannot be installed from here, CodeBusy.
func (m *Manager) InstallEngine(ctx context.Context, name, actor string) (registry.Operation, error) {
	l, err := m.engine(name)
	if err != nil {
		return registry.Operation{}, err
	}
	info := l.Info()
	ins, ok := l.(Installer)
	if !ok || m.EngineDir == "" {
		return registry.Operation{}, registry.Errorf(registry.CodeUnsupported, "%s cannot be installed from here. %s", info.Title, info.HowToGet)
	}
	stages := []registry.StageName{registry.StageFetch, registry.StageVerify, registry.StageEngine, registry.StageReady}
	return m.beginEngineJob(registry.OperationInstall, info, actor, "asked for", stages, func(ctx context.Context, t *tracker) (string, error) {
		if err := ins.Install(ctx, m.EngineDir, t.report); err != nil {
			// The engine tells of processes, if any are in its way; people know their models.
			if why := m.inUse(l, filepath.Join(m.EngineDir, name, ins.Offered())); why != "" && registry.CodeOf(err) == registry.CodeConflict {
				err = registry.Errorf(registry.CodeConflict, "%w. Here %s", err, why)
			}
			return "", err
		}
		m.ForgetEngines()
		return m.installedSentence(ctx, l), nil
	})
}

// installedSentence says how an installation ended. Older versions that nothing needs any more are removed.
func (m *Manager) installedSentence(ctx context.Context, l loaders.Loader) string {
	st := m.engineStatus(ctx, ctx, l)
	says := fmt.Sprintf("%s %s is installed.", st.Title, st.Offered)
	if !st.Usable {
		return says + " It cannot be used: " + st.Problem
	}
	newest := slices.IndexFunc(st.Installed, func(e registry.InstalledEngine) bool { return e.InUse })
	if newest < 0 {
		return fmt.Sprintf("%s The one at %s is used all the same: it is named, or comes first on the PATH.", says, st.Path)
	}
	if v := st.Installed[newest].Version; v != st.Offered {
		return fmt.Sprintf("%s The newer %s is used.", says, v)
	}
	for _, old := range st.Installed[newest+1:] {
		if why := m.inUse(l, old.Path); why != "" {
			says += fmt.Sprintf(" %s stays: %s.", old.Version, why)
			continue
		}
		freed, err := m.removeFolder(old.Path, nil)
		if err != nil {
			says += fmt.Sprintf(" %s could not be removed: %v.", old.Version, registry.AsError(err))
			continue
		}
		says += fmt.Sprintf(" %s was removed, which freed %s.", old.Version, registry.Bytes(freed))
	}
	return says
}

// RemoveEngine removes what was installed from here of an engine: one version, or all for "". CodeNotFound, CodeBadState
// when it was not installed from here, CodeConflict while models run on it or another engine needs it, CodeBusy.
func (m *Manager) RemoveEngine(ctx context.Context, name, version, actor string) (registry.Operation, error) {
	l, err := m.engine(name)
	if err != nil {
		return registry.Operation{}, err
	}
	st := m.engineStatus(ctx, ctx, l)
	if len(st.Installed) == 0 {
		switch {
		case st.Usable && st.Installable:
			return registry.Operation{}, registry.Errorf(registry.CodeBadState, "%s was not installed from here: it is at %s. Remove it in the way in which it was installed", st.Title, st.Path)
		case st.Usable:
			return registry.Operation{}, registry.Errorf(registry.CodeBadState, "Nothing was installed for %s, so that there is nothing to remove", st.Title)
		}
		return registry.Operation{}, registry.Errorf(registry.CodeBadState, "%s is not installed", st.Title)
	}
	folders := []string{filepath.Join(m.EngineDir, name), filepath.Join(m.EngineDir, "build", name)} // with its log, and what an installation left
	if version != "" {
		i := slices.IndexFunc(st.Installed, func(e registry.InstalledEngine) bool { return e.Version == version })
		if i < 0 {
			return registry.Operation{}, registry.Errorf(registry.CodeNotFound, "%s %s is not installed from here", st.Title, version)
		}
		folders = []string{st.Installed[i].Path}
	}
	what := strings.TrimSpace(st.Title + " " + version)
	if err := m.unused(l, what, folders[0]); err != nil {
		return registry.Operation{}, err
	}
	return m.beginEngineJob(registry.OperationRemove, l.Info(), actor, "asked for", registry.RemoveStages, func(_ context.Context, t *tracker) (string, error) {
		return m.removeUnused(l, what, folders, t)
	})
}

// removeUnused removes folders of an engine unless something needs the files of the first. That is looked at again: since it
// was asked for, a model may have been loaded.
func (m *Manager) removeUnused(l loaders.Loader, what string, folders []string, t *tracker) (string, error) {
	if err := m.unused(l, what, folders[0]); err != nil {
		return "", err
	}
	t.stage(registry.StageCheck, "Nothing runs on it")
	var freed int64
	for _, f := range folders {
		n, err := m.removeFolder(f, t)
		if freed += n; err != nil {
			return "", err
		}
	}
	m.sizes.forget()
	return fmt.Sprintf("%s was removed, which freed %s.", what, registry.Bytes(freed)), nil
}

// unused is CodeConflict while something needs the files below folder.
func (m *Manager) unused(l loaders.Loader, what, folder string) error {
	if why := m.inUse(l, folder); why != "" {
		return registry.Errorf(registry.CodeConflict, "%s cannot be removed: %s", what, why)
	}
	return nil
}

// inUse says what needs the files of an engine below folder: models that run or start on it, and other engines. "" nothing.
func (m *Manager) inUse(l loaders.Loader, folder string) string {
	var models []string
	for _, v := range m.views() {
		if v.rt.State.HoldsMemory() && v.rt.Engine == l.Info().Name && runsFrom(v.rt.Handle, folder) {
			models = append(models, v.rt.ModelID)
		}
	}
	if len(models) > 0 {
		slices.Sort(models)
		run := "runs"
		if len(models) > 1 {
			run = "run"
		}
		return fmt.Sprintf("%s %s on it. Unload %s first", joinAnd(models), run, map[bool]string{true: "it", false: "them"}[len(models) == 1])
	}
	for _, other := range m.Loaders {
		if b, ok := other.(loaders.Borrower); ok && other.Info().Name != l.Info().Name && b.Borrows(folder) {
			return fmt.Sprintf("%s uses programs of it. Remove %s first", other.Info().Title, other.Info().Title)
		}
	}
	return ""
}

// views are the models that somebody did something with since the start.
func (m *Manager) views() []*view {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*view, 0, len(m.actors))
	for _, a := range m.actors {
		out = append(out, a.view.Load())
	}
	return out
}

// runsFrom reports whether an engine's process was started from below folder, or may have been: it is not known yet.
func runsFrom(h *registry.Handle, folder string) bool {
	if h == nil {
		return true // it is about to start
	}
	if h.PID == 0 {
		return false // it runs elsewhere
	}
	return process.StartedFrom(h.PID, folder)
}

// removing is the beginning of the names of folders that are on their way out, beside those of the engines.
const removing = ".removing-"

// removeFolder removes a folder below EngineDir: it is out of the way at once, and then its files go. It returns the bytes
// that became free. t, if not nil, is told how far it is.
func (m *Manager) removeFolder(folder string, t *tracker) (int64, error) {
	gone := filepath.Join(m.EngineDir, removing+newID(m.now()))
	err := os.Rename(folder, gone)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, registry.Errorf(registry.CodeUnavailable, "%s cannot be moved away: %w", folder, err)
	}
	var files []string
	var freed int64
	_ = filepath.WalkDir(gone, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // RemoveAll tells what cannot be removed
		}
		files = append(files, p)
		if fi, err := d.Info(); err == nil && d.Type().IsRegular() {
			if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Nlink == 1 { // others are shared with a cache, and stay there
				freed += fi.Size()
			}
		}
		return nil
	})
	for i, f := range files {
		_ = os.Remove(f) // RemoveAll tells what cannot be removed
		if t != nil && i%512 == 0 {
			t.report(registry.Progress{Stage: registry.StageRemove, Done: int64(i), Total: int64(len(files)), Unit: registry.UnitFiles, Msg: "Removing files"})
		}
	}
	if err := os.RemoveAll(gone); err != nil {
		return freed, registry.Errorf(registry.CodeUnavailable, "%s was moved to %s and cannot be removed from there: %w", folder, gone, err)
	}
	return freed, nil
}

// clearRemoved removes what a removal left that the end of the server cut short.
func (m *Manager) clearRemoved() {
	if m.EngineDir == "" {
		return
	}
	left, err := filepath.Glob(filepath.Join(strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(m.EngineDir), removing+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			m.log.Warn("What is left of a removed engine cannot be removed", "folder", dir, "err", err)
		}
	}
}
