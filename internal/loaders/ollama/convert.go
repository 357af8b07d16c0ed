package ollama

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ollama/ollama/api"
	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// What was converted lies in the folder of models, blobs and manifest, under a name that says of what it was made: it is
// shown, counted and deleted with the models of Ollama's library, and an Ollama on the same folder can use it. While it is
// being made it lies in a folder of ours below blobs, which Ollama passes over, beside what the source ollama keeps there.
const (
	ownFolder     = ".llmm"
	convertPrefix = "convert-"
	lockName      = "lock" // as the source ollama names it: held while files are moved or deleted
)

// convertedName is the name of what these files become: the same for the same files, type and version of Ollama.
func convertedName(modelID, version string, w weights) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\x00%s\x00", version, w.quantize)
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		fi, err := os.Stat(w.files[name])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s\x00%d\x00%d\x00", name, fi.Size(), fi.ModTime().UnixNano())
	}
	return nameOf(modelID) + "-" + digestOf([]byte(b.String()))[len("sha256:"):][:12], nil
}

// converted returns the layers that a folder's files become. They are made once and kept in ModelsDir.
func (l *Loader) converted(ctx context.Context, prog program, spec loaders.LoadSpec, w weights, report func(registry.Progress)) (weights, error) {
	name, err := convertedName(spec.Model.ModelID, prog.version, w)
	if err != nil {
		return w, failedWith(err, spec.Artifact.Path)
	}
	if got, ok := l.kept(name, w); ok {
		return got, nil
	}
	if !prog.quantize {
		f := httpengine.Diagnose(causes, []string{"llama-quantize unavailable"})
		return w, &registry.Error{Code: registry.CodeLoadingFailed, Op: "ollama.Load", Msg: f.Msg + ": " + beside(prog.path, "llama-quantize") + " is missing", Failure: &f}
	}
	if err := l.convert(ctx, prog, spec, name, w, report); err != nil {
		if ctx.Err() != nil {
			return w, cancelled(spec)
		}
		return w, err
	}
	got, ok := l.kept(name, w)
	if !ok {
		return w, missing("See what empties the folder, then load again.", "What %s was converted into is not in %s any more", spec.Model.ModelID, l.o.ModelsDir)
	}
	return got, nil
}

// kept returns a converted model that is in ModelsDir, whole.
func (l *Loader) kept(name string, w weights) (weights, bool) {
	raw, err := readSmall(manifestFile(l.o.ModelsDir, name), maxManifest)
	if err != nil {
		return w, false
	}
	man, err := parseManifest(raw)
	if err != nil {
		return w, false
	}
	got := weights{family: w.family}
	if err := got.take(l.o.ModelsDir, man); err != nil {
		return w, false
	}
	return got, true
}

// convert runs an Ollama on a folder where it finds the files as blobs, has it create a model of them, and moves what it
// made into ModelsDir. Whatever happens, nothing else is left.
func (l *Loader) convert(ctx context.Context, prog program, spec loaders.LoadSpec, name string, w weights, report func(registry.Progress)) (err error) {
	work, done, err := l.workshop()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	say := newConversion(w, report)
	if w, err = l.rewrite(ctx, work, w, say, cost.disk); err != nil {
		return err
	}
	models := filepath.Join(work, "models")
	files, err := linkFiles(models, w)
	if err != nil {
		return failedWith(err, spec.Artifact.Path)
	}
	say.status(api.ProgressResponse{Status: "starting"})
	cfg := l.config()
	cfg.Tidy = nil
	cfg.Endpoint = registry.Endpoint{Model: name}
	cfg.Command = func(port int, _ string) httpengine.Command {
		return httpengine.Command{Argv: []string{prog.path, "serve"}, Env: childEnv(spec, nil, filepath.Join(work, "home"), models, port)}
	}
	cfg.Warmup = httpengine.API{Path: "/api/show", Body: map[string]any{"model": name}}
	cfg.Prepare = func(ctx context.Context, base string, _ func(registry.Progress)) error {
		stop := say.watch(models)
		defer stop()
		return explainConversion(clientOf(base).Create(ctx, &api.CreateRequest{Model: name, Files: files, Quantize: w.quantize}, func(p api.ProgressResponse) error {
			say.status(p)
			return nil
		}))
	}
	in, err := httpengine.Load(ctx, cfg, spec, nil)
	if err != nil {
		return err
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := in.Stop(stop); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return l.keep(ctx, models, name)
}

// workshop makes a folder for one conversion, which nobody else takes for a stale one until done removes it.
func (l *Loader) workshop() (work string, done func() error, err error) {
	own := filepath.Join(l.o.ModelsDir, "blobs", ownFolder)
	if err := os.MkdirAll(own, 0o755); err != nil {
		return "", nil, failedWith(err, own)
	}
	clearStale(own)
	work, err = os.MkdirTemp(own, convertPrefix)
	if err != nil {
		return "", nil, failedWith(err, own)
	}
	held, err := hold(work)
	if err != nil {
		return "", nil, failedWith(errors.Join(err, os.RemoveAll(work)), work)
	}
	return work, func() error { defer held(); return os.RemoveAll(work) }, nil
}

// explainConversion words what create answered. It gives what a folder lacks as the error of a file in a folder of its own.
func explainConversion(err error) error {
	err = explain(err)
	var e *registry.Error
	if errors.As(err, &e) && e.Failure != nil && e.Failure.Kind == "" {
		e.Failure.Msg = strings.Replace(e.Failure.Msg, "could not load", "could not convert", 1)
		e.Msg = e.Failure.Msg
	}
	return err
}

// clone makes a file with the content of another that takes no space of its own, where the file system can do that.
func clone(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read from
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(unix.IoctlFileClone(int(out.Fd()), int(in.Fd())), out.Close())
	if err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

// cloneOrCopy is clone, or a copy where there is no cloning.
func cloneOrCopy(from, to string) error {
	if clone(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read from
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// linkFiles puts the files where Ollama looks for blobs, by links, and returns their names with their digests.
func linkFiles(models string, w weights) (map[string]string, error) {
	blobs := filepath.Join(models, "blobs")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for name, path := range w.files {
		// The file itself: a snapshot of the Hub is made of links, and Ollama makes hard links to blobs.
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, err
		}
		if real, err = filepath.Abs(real); err != nil {
			return nil, err
		}
		d := digestOf([]byte(name + "\x00" + real)) // a name and nothing else, see fileLayer
		put := os.Symlink
		if strings.HasSuffix(name, ".gguf") {
			put = cloneOrCopy // Ollama sets the times of such blobs, through links, too
		}
		if err := put(real, blobFile(blobs, d)); err != nil {
			return nil, err
		}
		out[name] = d
	}
	return out, nil
}

// keep moves what was made into ModelsDir, blobs first, so that the manifest names nothing that is missing.
func (l *Loader) keep(ctx context.Context, models, name string) error {
	raw, err := readSmall(manifestFile(models, name), maxManifest)
	if err != nil {
		return failedWith(err, models)
	}
	man, err := parseManifest(raw)
	if err != nil {
		return failedWith(err, models)
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return failedWith(err, l.o.ModelsDir)
	}
	defer unlock()
	for _, ly := range append(slices.Clone(man.Layers), man.Config) {
		from, to := blobFile(filepath.Join(models, "blobs"), ly.Digest), blobFile(filepath.Join(l.o.ModelsDir, "blobs"), ly.Digest)
		if fi, err := os.Stat(to); err == nil && fi.Size() == ly.Size {
			continue
		}
		if err := place(from, to); err != nil {
			return failedWith(err, to)
		}
	}
	to := manifestFile(l.o.ModelsDir, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return failedWith(err, to)
	}
	if err := place(manifestFile(models, name), to); err != nil {
		return failedWith(err, to)
	}
	return nil
}

// place moves a file whole, on the disk and for everybody to read. Both lie on one file system.
func place(from, to string) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	err = errors.Join(file.Chmod(0o644), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(from, to)
	}
	return err
}

// lock keeps fetches and deletions of the source ollama out of the folder for a moment.
func (l *Loader) lock(ctx context.Context) (func(), error) {
	path := filepath.Join(l.o.ModelsDir, "blobs", ownFolder, lockName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil // which unlocks it
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, file.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), file.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// hold marks a folder as in use until release is called or this program ends.
func hold(dir string) (release func(), err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() { _ = file.Close() }, nil
}

// clearStale removes what conversions left that were killed with this program.
func clearStale(own string) {
	list, err := os.ReadDir(own)
	if err != nil {
		return
	}
	for _, e := range list {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), convertPrefix) {
			continue
		}
		dir := filepath.Join(own, e.Name())
		fi, err := e.Info()
		if err != nil || time.Since(fi.ModTime()) < time.Minute { // one that is not held yet
			continue
		}
		if release, err := hold(dir); err == nil {
			_ = os.RemoveAll(dir) // what is left is tried again the next time
			release()
		}
	}
}
