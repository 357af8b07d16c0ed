package ollama

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/loaders/pytorch"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// cost is what a conversion writes, in bytes: safetensors of PyTorch's files, which Ollama's server does not take, GGUF in
// 16 bits of those, and what it is quantised to.
type cost struct {
	safetensors, gguf, kept int64
	pulled                  int64 // what a server has to fetch instead
}

// work is all that is written, as progress counts it.
func (c cost) work() int64 { return c.safetensors + 2*c.gguf }

// disk is the most that lies on the disk at one time. Ollama writes each of its files twice, once under a name of its own
// and once as a blob, and removes the first then.
func (c cost) disk() int64 { return c.safetensors + max(2*c.gguf, c.gguf+2*c.kept) }

// here is what of it is written on this machine's disk for a running server, which converts where it keeps its models.
func (c cost) here() int64 { return c.safetensors }

// costOf estimates what converting the files takes, from what the facts say.
func costOf(bytes int64, f registry.Facts, bits int, torch bool) cost {
	var c cost
	if torch {
		c.safetensors = bytes
	}
	c.gguf = bytes
	if f.DType == "f32" { // which Ollama makes 16 bits of
		c.gguf = bytes / 2
	}
	c.kept = c.gguf
	if q, ok := quantizedBits[bits]; ok && f.Parameters > 0 {
		c.kept = min(c.gguf, int64(float64(f.Parameters)*q/8))
	}
	return c
}

// rewrite makes safetensors of PyTorch's files in the folder of a conversion, and returns the files that Ollama is to get.
// What is in them is not run; see package pytorch. CodeLoadingFailed with FailureDiskFull when the disk has no room for what
// the conversion will write on it, in bytes, by needed.
func (l *Loader) rewrite(ctx context.Context, work string, w weights, say *conversion, needed func(cost) int64) (weights, error) {
	if len(w.torch) == 0 {
		return w, room(work, needed(say.cost))
	}
	paths := make([]string, 0, len(w.torch))
	for _, name := range w.torch {
		paths = append(paths, w.files[name])
	}
	in, err := pytorch.Open(paths)
	if err != nil {
		return w, err
	}
	defer in.Close()
	if say.cost.safetensors, err = in.Bytes(); err != nil {
		return w, failedWith(err, work)
	}
	if err := room(work, needed(say.cost)); err != nil {
		return w, err
	}
	dir := filepath.Join(work, "safetensors")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return w, failedWith(err, work)
	}
	made, err := in.Write(ctx, dir, say.rewritten)
	if err != nil {
		if registry.CodeOf(err) == registry.CodeInternal && ctx.Err() == nil {
			err = failedWith(err, dir)
		}
		return w, err
	}
	out := w
	out.files, out.torch = maps.Clone(w.files), nil
	for i, name := range w.torch {
		delete(out.files, name)
		out.files[filepath.Base(made[i])] = made[i]
	}
	return out, nil
}

// room looks whether the disk of a folder has so many bytes.
func room(dir string, needed int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return failedWith(err, dir)
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	return enough(dir, needed, free, total)
}

// enough is nil when what is needed is free.
func enough(dir string, needed, free, total int64) error {
	if needed <= free {
		return nil
	}
	f := &registry.Failure{Kind: registry.FailureDiskFull, Msg: fmt.Sprintf("The disk of %s has no room to convert the model for Ollama: that takes up to %s for a while, and %s are free", dir, registry.Bytes(needed), registry.Bytes(free)),
		Hint: "Delete files of models that nobody uses (`llmm storage`), or move the data folder to a larger disk, then load the model again."}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "ollama.Load", Msg: f.Msg, Failure: f,
		Shortage: &registry.Shortage{Device: "disk", Needed: needed, Free: free, Short: needed - free, Total: total}}
}
