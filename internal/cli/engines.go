package cli

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/command"
	"github.com/industriverse/llmmodelmanager/internal/loaders/external"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/loaders/llamacpp"
	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/loaders/vllm"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	library "github.com/industriverse/llmmodelmanager/internal/sources/ollama"
)

// engineFlags are the flags of serve about the programs that run models.
type engineFlags struct {
	LlamaServer        string   `help:"llama.cpp's server to use. Otherwise the one on the PATH, or an installed one." placeholder:"FILE" type:"path"`
	TransformersPython string   `help:"A Python that has torch and transformers. Otherwise an installed environment, or the python3 on the PATH." placeholder:"FILE"`
	OllamaHost         string   `help:"A running Ollama to use for every model of that engine; OLLAMA_HOST does the same. Otherwise each model gets one of its own." placeholder:"HOST"`
	Ollama             string   `help:"The program ollama to use. Otherwise the one on the PATH, or an installed one." placeholder:"FILE" type:"path"`
	Vllm               string   `help:"The program vllm, or a Python that has it. Otherwise the one on the PATH, or an installed one." placeholder:"FILE" type:"path"`
	Commands           string   `help:"A YAML file of programs that the engine command may run; docs/engines.md says how." placeholder:"FILE" type:"path"`
	ExternalHosts      []string `help:"Hosts of external services that everybody who may register models may name; others are for admins. *.example.com is all below it." placeholder:"HOST"`
	ExternalPrivate    bool     `help:"Let external services be on this machine or in private networks."`
	insecure           []string // registries of Ollama models, as the sources have them
	FakeEngine         string   `help:"The test double of an engine, for trying things out." placeholder:"FILE" type:"path" hidden:""`
}

// loaders is the set of engines, in the order in which auto prefers them. To add one, add its line.
func (f *engineFlags) loaders(installation, engines, dataDir string, log *slog.Logger) ([]loaders.Loader, error) {
	dirs := []string{engines}
	var templates []*command.Template
	if f.Commands != "" {
		var err error
		if templates, err = command.ReadFile(f.Commands); err != nil {
			return nil, err
		}
	}
	set := []loaders.Loader{
		llamacpp.New(llamacpp.Options{Path: f.LlamaServer, SearchDirs: dirs, TagPrefix: installation, Logger: log}),
		transformers.New(transformers.Options{Python: f.TransformersPython, SearchDirs: dirs, TagPrefix: installation, Logger: log}),
		ollama.New(ollama.Options{Insecure: f.insecure, Host: cmp.Or(f.OllamaHost, os.Getenv("OLLAMA_HOST")), Path: f.Ollama, SearchDirs: dirs,
			ModelsDir: library.Folder(dataDir, os.Getenv), TagPrefix: installation, Logger: log}),
		vllm.New(vllm.Options{Path: f.Vllm, SearchDirs: dirs, TagPrefix: installation, Logger: log}),
		external.New(external.Options{AllowPrivate: f.ExternalPrivate, Logger: log}),
		command.New(command.Options{Templates: templates, File: f.Commands, TagPrefix: installation, Logger: log}),
	}
	if f.FakeEngine != "" {
		set = append(set, fake.New(fake.Options{Path: f.FakeEngine, TagPrefix: installation, Logger: log}))
	}
	return set, nil
}

// engineDir is where engines are installed: shared by all data folders of a user, since building one takes minutes.
func engineDir(dataDir string) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return filepath.Join(dataDir, "engines")
	}
	return filepath.Join(cache, "llmm", "engines")
}

type engineCmd struct {
	Ls      engineLsCmd      `cmd:"" help:"List the engines of the server and what is missing."`
	Show    engineShowCmd    `cmd:"" help:"Show one engine: what it can load, its settings, its installed versions, the models that use it."`
	Install engineInstallCmd `cmd:"" help:"Install or upgrade an engine on this machine, with progress. Needs no server."`
	Remove  engineRemoveCmd  `cmd:"" help:"Remove what was installed of an engine. Refused while models run on it. For admins."`
	Test    engineTestCmd    `cmd:"" help:"Load a tiny model with an engine, ask it, unload it, and say what was measured. For admins."`
}

type engineLsCmd struct{ remote }

func (c *engineLsCmd) Run(e *env) error {
	var got struct {
		Engines []registry.EngineStatus `json:"engines"`
	}
	if err := c.get(e, "/api/v1/engines", &got); err != nil || c.JSON {
		return err
	}
	err := table(e.stdout, "ENGINE\tVERSION\tDEVICES\tFORMATS\tPATH", func(t *tabwriter.Writer) {
		for _, en := range got.Engines {
			fmt.Fprintf(t, "%s\t%s\t%v\t%v\t%s\n", en.Name, dash(en.Version), en.Devices, en.Formats, dash(en.Path))
		}
	})
	for _, en := range got.Engines {
		switch {
		case !en.Usable:
			line := en.Name + ": " + en.Problem
			if !strings.Contains(en.Problem, en.HowToGet) {
				line += " " + en.HowToGet
			}
			fmt.Fprintln(e.stdout, line)
		case en.Upgrade != "":
			fmt.Fprintf(e.stdout, "%s: %s can be installed in its place: llmm engine install %s\n", en.Name, en.Upgrade, en.Name)
		}
	}
	return err
}

type engineShowCmd struct {
	remote
	Name string `arg:"" help:"The engine's name, as llmm engine ls says it."`
}

func (c *engineShowCmd) Run(e *env) error {
	var en struct {
		registry.EngineStatus
		UsedBy []registry.EngineUse `json:"used_by"`
	}
	if err := c.get(e, enginePath(c.Name), &en); err != nil || c.JSON {
		return err
	}
	err := table(e.stdout, en.Title+"\t", func(t *tabwriter.Writer) {
		row := func(name string, v any) {
			if s := strings.Trim(fmt.Sprint(v), "[]"); s != "" {
				fmt.Fprintf(t, "%s\t%s\n", name, s)
			}
		}
		row("usable", en.Usable)
		row("problem", en.Problem)
		if !en.Usable {
			row("how to get it", en.HowToGet)
		}
		row("version", en.Version)
		row("path", en.Path)
		row("devices of this build", en.Devices)
		row("devices of the engine", en.RunsOn)
		row("formats", en.Formats)
		row("sources", en.Sources)
		row("answers", en.APIs)
		row("experimental", en.Experimental)
		row("can sleep", en.CanSleep)
		row("upgrade", en.Upgrade)
		for _, v := range en.Installed {
			note := ""
			if v.InUse {
				note = ", in use"
			}
			row("installed", v.Version+", "+bytes(v.Bytes)+note)
		}
		for _, p := range en.Parts {
			row("command "+p.Name, strings.TrimSpace(p.Program+" "+p.Version+" "+p.Problem))
		}
		for _, u := range en.UsedBy {
			row("used by", u.ModelID+" ("+string(u.State)+")")
		}
	})
	if err != nil || len(en.Params) == 0 {
		return err
	}
	fmt.Fprintln(e.stdout)
	return table(e.stdout, "LOADER SETTING\tKIND\tWHAT IT DOES", func(t *tabwriter.Writer) {
		for _, p := range en.Params {
			kind := string(p.Kind)
			if len(p.Opts) > 0 {
				kind = strings.Join(p.Opts, "|")
			}
			fmt.Fprintf(t, "%s\t%s\t%s\n", p.Name, kind, p.Help)
		}
	})
}

type engineRemoveCmd struct {
	remote
	Name    string `arg:"" help:"The engine's name."`
	Release string `arg:"" optional:"" help:"Only this version; all of them if it is not given."`
}

func (c *engineRemoveCmd) Run(e *env) error {
	path := enginePath(c.Name)
	if c.Release != "" {
		path += "?version=" + url.QueryEscape(c.Release)
	}
	var op registry.Operation
	if _, _, err := c.call(e.ctx, http.MethodDelete, path, nil, "", &op); err != nil {
		return err
	}
	op, err := c.watch(e, op)
	if err != nil {
		return err
	}
	return c.finish(e, op)
}

type engineTestCmd struct {
	remote
	Name   string `arg:"" help:"The engine's name."`
	Device string `help:"Where the tiny model is loaded: auto, cuda or cpu."`
	Model  string `help:"With external: the model whose service is asked; all of them if it is not given." placeholder:"MODEL"`
}

func (c *engineTestCmd) Run(e *env) error {
	in := map[string]any{}
	if c.Device != "" {
		in["device"] = c.Device
	}
	if c.Model != "" {
		in["model"] = c.Model
	}
	var op registry.Operation
	if _, _, err := c.post(e, enginePath(c.Name)+"/self-test", in, &op); err != nil {
		return err
	}
	op, err := c.watch(e, op)
	if err != nil {
		return err
	}
	if !c.JSON {
		err = table(e.stdout, "STEP\tTOOK\tWHAT", func(t *tabwriter.Writer) {
			for _, s := range op.Stages {
				if s.State == registry.StageDone || s.State == registry.StageFailed {
					fmt.Fprintf(t, "%s\t%s\t%s\n", s.Name, s.EndedAt.Sub(s.StartedAt).Round(time.Millisecond), dash(s.Msg))
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return c.finish(e, op)
}

func enginePath(name string) string { return "/api/v1/engines/" + url.PathEscape(name) }

type engineInstallCmd struct {
	Name string `arg:"" help:"The engine: llamacpp, transformers, ollama or vllm."`
	Dir  string `help:"Where to install it." type:"path" placeholder:"DIR"`
	From string `help:"The archive of the engine's sources, on a machine without a network (llamacpp)." type:"path" placeholder:"FILE"`
}

func (c *engineInstallCmd) Run(e *env) error {
	dir := c.Dir
	if dir == "" {
		dir = engineDir(defaultDataDir())
	}
	l, err := installable(c.Name, dir)
	if err != nil {
		return err
	}
	if c.From != "" {
		if c.Name != llamacpp.Name {
			return registry.Errorf(registry.CodeInvalid, "--from is for %s only: %s cannot be installed from an archive", llamacpp.Name, c.Name)
		}
		l = llamacpp.New(llamacpp.Options{SearchDirs: []string{dir}, Archive: c.From})
	}
	last, shown := "", time.Time{}
	err = l.Install(e.ctx, dir, func(p registry.Progress) {
		line := p.Msg
		if p.Total > 0 {
			line += fmt.Sprintf(" %d of %d", p.Done, p.Total)
		}
		// The compiler makes a step every few seconds; a line every two keeps a log readable.
		if line == last || (p.Done > 0 && p.Done < p.Total && time.Since(shown) < 2*time.Second) {
			return
		}
		last, shown = line, time.Now()
		fmt.Fprintln(e.stderr, "  "+line)
	})
	if err != nil {
		return err
	}
	var v loaders.Version
	if v, err = l.Check(e.ctx); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s %s is ready: %s\n", l.Info().Title, v.Version, v.Path)
	return nil
}

// installer is a loader whose engine can be installed from here.
type installer interface {
	loaders.Loader
	loaders.Installer
}

// installable returns the loader of an engine that can be installed below dir.
func installable(name, dir string) (installer, error) {
	set, err := (&engineFlags{}).loaders("", dir, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range set {
		in, ok := l.(installer)
		if !ok {
			continue
		}
		if l.Info().Name == name {
			return in, nil
		}
		names = append(names, l.Info().Name)
	}
	return nil, registry.Errorf(registry.CodeNotFound, "There is no engine %q that can be installed from here; there are %s", name, strings.Join(names, ", "))
}
