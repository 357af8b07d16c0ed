package command

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var _ loaders.Parts = (*Loader)(nil)

// askVersion bounds how long a program is waited for that is asked for its version. Some import torch first.
const askVersion = 20 * time.Second

// Parts looks whether each template's program can be run, and asks it for its version.
func (l *Loader) Parts(ctx context.Context) []registry.EnginePart {
	out := make([]registry.EnginePart, len(l.o.Templates))
	var all sync.WaitGroup
	for i, t := range l.o.Templates {
		out[i] = registry.EnginePart{Name: t.Name, Title: t.Title, Program: t.Argv[0].args[0], Formats: t.Formats, Devices: t.Devices}
		program, err := exec.LookPath(out[i].Program)
		if err != nil {
			if cause := errors.Unwrap(err); cause != nil {
				err = cause
			}
			out[i].Problem = fmt.Sprintf("%s cannot be run: %v", out[i].Program, err)
			continue
		}
		out[i].Program = program
		all.Go(func() { out[i].Version = versionOf(ctx, program, t) })
	}
	all.Wait()
	return out
}

var versionLike = regexp.MustCompile(`[vb]?[0-9]+(?:\.[0-9A-Za-z]+)+(?:[-+][0-9A-Za-z.]+)?|\b[0-9]{3,}\b`)

// versionOf asks a program with --version, and says the first thing in the answer that looks like one. Of a template that
// names a module of an interpreter, that module is asked.
func versionOf(ctx context.Context, program string, t *Template) string {
	ctx, cancel := context.WithTimeout(ctx, askVersion)
	defer cancel()
	argv := []string{program}
	// python -m module: without the module this would be Python's own version.
	if words := t.fixed(); len(words) >= 2 && words[0] == "-m" && strings.HasPrefix(filepath.Base(program), "python") {
		argv = append(argv, words[0], words[1])
	}
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], "--version")...)
	cmd.Env = process.BaseEnv()
	cmd.WaitDelay = time.Second
	said, err := cmd.CombinedOutput()
	if err != nil {
		return "" // many programs do not say it
	}
	return versionLike.FindString(string(said))
}

// fixed are the first arguments after the program that hold no placeholder and are always given.
func (t *Template) fixed() []string {
	var out []string
	for i, a := range t.Argv {
		for j, s := range a.args {
			if i == 0 && j == 0 {
				continue
			}
			if a.only != "" || placeholder.MatchString(s) {
				return out
			}
			out = append(out, s)
		}
	}
	return out
}
