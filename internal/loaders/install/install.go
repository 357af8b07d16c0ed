// Package install is what the installers of engines share: one installation at a time in a folder, tools that are run to
// their end or killed with all that they have started, and errors in the same words.
package install

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Job is one installation of an engine.
type Job struct {
	op, title, tag string
}

// New returns an installation of the engine that the code calls name and people call title. TagPrefix names whose processes
// the tools are; it may be empty. The tag that they carry is this installation's alone: ending a tool ends all that carry it.
func New(name, title, tagPrefix string) *Job {
	if tagPrefix == "" {
		tagPrefix = "llmm-install"
	}
	return &Job{op: name + ".Install", title: title, tag: fmt.Sprintf("%s/install-%s-%d-%d", tagPrefix, name, os.Getpid(), time.Now().UnixNano())}
}

// Failed returns a CodeInternal error that wraps err.
func (j *Job) Failed(err error, format string, args ...any) error {
	return j.error(registry.CodeInternal, err, format, args...)
}

// Unavailable returns a CodeUnavailable error that wraps err, which may be nil: something that the machine or the network
// lacks, and how to get it.
func (j *Job) Unavailable(err error, format string, args ...any) error {
	return j.error(registry.CodeUnavailable, err, format, args...)
}

func (j *Job) error(code registry.Code, err error, format string, args ...any) error {
	return &registry.Error{Code: code, Op: j.op, Msg: fmt.Sprintf(format, args...), Err: err}
}

// Stopped returns the CodeLoadingFailed error, of kind cancelled, of an installation whose context ended with err.
func (j *Job) Stopped(err error) error {
	f := &registry.Failure{Kind: registry.FailureCancelled, Msg: "The installation of " + j.title + " was stopped; it goes on from there the next time"}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: j.op, Msg: f.Msg, Failure: f, Err: err}
}

// Lock keeps two installations from working in one folder, of which path is a file: CodeConflict while another holds it. It
// goes with its process.
func (j *Job) Lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, j.Failed(err, "Cannot lock %s: %v", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, j.error(registry.CodeConflict, err, "%s is being installed already; wait for that to end", j.title)
	}
	return func() { _ = f.Close() }, nil
}

// Tool is a program to run.
type Tool struct {
	Argv   []string // the first is a path or a name on the PATH
	Env    []string // all of its environment; Environment is a good start
	Dir    string   // working folder
	Log    string   // file that what it prints is appended to
	Line   func(line string)
	Logger *slog.Logger // may be nil
}

// ToolError is a tool that ended with an error.
type ToolError struct {
	Tool string   // its name
	Last string   // the line that tells most of what it printed
	Tail []string // the last lines that it printed
	Log  string   // the file with all of them
}

func (e *ToolError) Error() string { return e.Tool + ": " + e.Last }

// Run runs a tool to its end and gives each line that it prints to t.Line, if there is one. When ctx ends it is killed with
// all that it has started, and the error is Stopped's. A tool that fails is a *ToolError; one that is not there, CodeInternal.
func (j *Job) Run(ctx context.Context, t Tool) error {
	if err := ctx.Err(); err != nil {
		return j.Stopped(err)
	}
	path, err := exec.LookPath(t.Argv[0])
	if err != nil {
		return j.Failed(err, "%s is not on the PATH: %v", t.Argv[0], err)
	}
	argv := append([]string{path}, t.Argv[1:]...)
	p, err := process.Start(process.Spec{Argv: argv, Env: t.Env, Dir: t.Dir, LogPath: t.Log, Tag: j.tag, Logger: t.Logger})
	if err != nil {
		return err
	}
	follow := process.Follow(t.Log, p.LogOffset())
	read := func() {
		for _, l := range follow.Lines() {
			if t.Line != nil {
				t.Line(l)
			}
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := p.Kill(); err != nil {
				return err
			}
			return j.Stopped(ctx.Err())
		case <-p.Done():
			read()
			return judge(filepath.Base(path), p.Exit(), p.Tail(60), t.Log)
		case <-tick.C:
			read()
		}
	}
}

// judge says how a tool ended.
func judge(name string, exit process.Exit, tail []string, log string) error {
	if exit.Signal == 0 && exit.Code == 0 {
		return nil
	}
	last := lastWords(tail)
	if exit.Signal != 0 {
		last = fmt.Sprintf("%s was ended by a signal (%v), perhaps because memory ran out; before that it said: %s", name, exit.Signal, last)
	}
	return &ToolError{Tool: name, Last: last, Tail: tail, Log: log}
}

// lastWords is the line that tells most: the last one with the word error, else the last one.
func lastWords(tail []string) string {
	for i := len(tail) - 1; i >= 0; i-- {
		if strings.Contains(strings.ToLower(tail[i]), "error") {
			return strings.TrimSpace(tail[i])
		}
	}
	if len(tail) == 0 {
		return "it printed nothing"
	}
	return tail[len(tail)-1]
}
