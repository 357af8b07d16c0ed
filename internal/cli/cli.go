// Package cli is the llmm command: serve runs the server; the other commands are clients of its API, so whatever the
// console does a script can do.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v4"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Version is set by the linker.
var Version = "dev"

// commands is the whole command line.
type commands struct {
	Config  kong.ConfigFlag  `help:"A YAML file with flags: listen: 0.0.0.0:8080" placeholder:"FILE" env:"LLMM_CONFIG"`
	Version kong.VersionFlag `help:"Show the version."`

	Serve serveCmd `cmd:"" help:"Run the server and its console."`

	Ls       lsCmd       `cmd:"" help:"List the models."`
	Show     showCmd     `cmd:"" help:"Show a model's configuration and state."`
	Register registerCmd `cmd:"" help:"Register a model, or change it."`
	Rm       rmCmd       `cmd:"" help:"Delete a model from the registry. Its files stay."`
	Plan     planCmd     `cmd:"" help:"Say what would happen if a model were loaded now."`
	Load     loadCmd     `cmd:"" help:"Load a model and watch it load."`
	Fetch    fetchCmd    `cmd:"" help:"Bring a model's files to the server's disk without loading it."`
	Pause    pauseCmd    `cmd:"" help:"Pause a fetch; what has arrived is kept."`
	Resume   resumeCmd   `cmd:"" help:"Let a paused fetch go on."`
	Lookup   lookupCmd   `cmd:"" help:"Say what is known of a model before it is registered or fetched."`
	Storage  storageCmd  `cmd:"" help:"What occupies the disks, and what may be deleted."`
	Secret   secretCmd   `cmd:"" help:"Secrets that loader parameters refer to as secret:NAME."`
	Unload   unloadCmd   `cmd:"" help:"Unload a model and give its memory back."`
	Sleep    sleepCmd    `cmd:"" help:"Let a loaded model's engine give the device's memory back without ending."`
	Wake     wakeCmd     `cmd:"" help:"Wake a model that sleeps."`
	Instance instanceCmd `cmd:"" help:"Show the loaded instance of a model, loading it if need be."`
	Ps       psCmd       `cmd:"" help:"List what is loaded and who holds the memory."`
	Ops      opsCmd      `cmd:"" help:"List operations, newest first."`
	Cancel   cancelCmd   `cmd:"" help:"Cancel an operation that is under way."`
	Logs     logsCmd     `cmd:"" help:"Show the end of a model's engine log."`
	Events   eventsCmd   `cmd:"" help:"Follow what happens, a JSON object a line."`
	Import   importCmd   `cmd:"" help:"Import a YAML file of models."`
	Export   exportCmd   `cmd:"" help:"Write the models as YAML."`
	Engine   engineCmd   `cmd:"" help:"Engines: list those that are here, install one."`
	Token    tokenCmd    `cmd:"" help:"API tokens of your account."`

	Registration registrationCmd `cmd:"" help:"Approve, deprecate, archive or restore a model. For maintainers."`
	Team         teamCmd         `cmd:"" help:"Teams and who is in them."`
	User         userCmd         `cmd:"" help:"Accounts. For admins."`
	Audit        auditCmd        `cmd:"" help:"List who did what, newest first. For admins."`
}

// env is what commands run in.
type env struct {
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// remote is how the client commands find the server.
type remote struct {
	Server string `help:"The server's address." default:"http://127.0.0.1:8080" env:"LLMM_SERVER" placeholder:"URL"`
	Token  string `help:"An API token. Make one in the console under Account." env:"LLMM_TOKEN,LLMM_ADMIN_TOKEN" placeholder:"TOKEN"`
	JSON   bool   `help:"Write the API's answer as it is." name:"json"`
}

// Run runs one command line and returns the exit status: 0 done, 1 it failed, 2 the command line is wrong.
func Run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var cmd commands
	code := -1
	parser, err := kong.New(&cmd, kong.Name("llmm"),
		kong.Description("One place to register, load, watch and use models on shared GPU machines."),
		kong.Vars{"version": Version, "data_dir": defaultDataDir()}, kong.Configuration(yamlConfig), kong.PostBuild(serveVariables),
		kong.Writers(stdout, stderr), kong.Exit(func(c int) { code = c; panic(exited{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.UsageOnError())
	if err != nil {
		fmt.Fprintln(stderr, "llmm:", err)
		return 2
	}
	kctx, err := parse(parser, args)
	if code >= 0 {
		return code
	}
	if err != nil {
		fmt.Fprintln(stderr, "llmm:", err)
		return 2
	}
	kctx.Bind(&env{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr})
	if err := kctx.Run(); err != nil {
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return 130
		}
		fmt.Fprintln(stderr, "llmm: "+describe(err))
		return 1
	}
	return 0
}

// exited unwinds kong's own exit, which --help and --version end with.
type exited struct{}

func parse(p *kong.Kong, args []string) (ctx *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(exited); !ok {
				panic(r)
			}
		}
	}()
	return p.Parse(args)
}

func describe(err error) string {
	var e *registry.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	var b strings.Builder
	if len(e.Fields) > 1 {
		b.WriteString(e.Msg)
		for _, f := range e.Fields {
			b.WriteString("\n  ")
			if f.Line > 0 {
				fmt.Fprintf(&b, "line %d, column %d: ", f.Line, f.Column)
			}
			b.WriteString(f.Field + " " + f.Msg)
		}
	} else {
		b.WriteString(e.Error())
	}
	if f := e.Failure; f != nil {
		if f.Hint != "" && !strings.Contains(e.Error(), f.Hint) {
			b.WriteString("\n  " + f.Hint)
		}
		b.WriteString(logTail(f))
	}
	if s := e.Shortage; s != nil {
		for _, h := range s.Holders {
			who := h.ModelID
			if who == "" {
				who = "not ours"
				if h.PID > 0 {
					who = fmt.Sprintf("not ours (pid %d)", h.PID)
				}
			}
			note := ""
			if h.Evictable && (s.Total == 0 || s.Needed <= s.Total) { // what is larger than the device fits after no eviction
				note = ", idle: could be evicted (--evict)"
			}
			fmt.Fprintf(&b, "\n  %s holds %s%s", who, bytes(h.Bytes), note)
		}
	}
	return b.String()
}

// serveVariables gives each flag of serve its variable: --data-dir is LLMM_DATA_DIR. Flags of other commands have only those
// that they name, or LLMM_MODELS, which is a file to serve, would narrow what llmm events shows.
func serveVariables(k *kong.Kong) error {
	for _, cmd := range k.Model.Children {
		if cmd.Name != "serve" {
			continue
		}
		for _, flag := range cmd.Flags {
			if flag.Name != "help" && len(flag.Envs) == 0 {
				name := "LLMM_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
				flag.Envs, flag.Tag.Envs = []string{name}, []string{name}
			}
		}
	}
	return nil
}

// yamlConfig lets a YAML file give the flags of serve by their names, and server and token for the other commands.
func yamlConfig(r io.Reader) (kong.Resolver, error) {
	values := map[string]any{}
	if err := yaml.NewDecoder(r).Decode(&values); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the configuration file: %w", err)
	}
	c := configuration{}
	for name, v := range values {
		c[strings.ReplaceAll(name, "_", "-")] = v
	}
	return c, nil
}

// configuration is what a configuration file gives, by the names of flags.
type configuration map[string]any

// Validate refuses what is no flag: a name that is mistyped would be passed over in silence.
func (c configuration) Validate(app *kong.Application) error {
	known := map[string]bool{"server": true, "token": true}
	for _, cmd := range app.Children {
		for _, flag := range cmd.Flags {
			if cmd.Name == "serve" {
				known[flag.Name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if !known[name] {
			return fmt.Errorf("the configuration file has %q, which is no flag of llmm serve; llmm serve --help lists them", name)
		}
	}
	return nil
}

// Resolve returns what the file gives for a flag, nil for nothing.
func (c configuration) Resolve(_ *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if n := parent.Node(); n != nil && n.Name != "serve" && flag.Name != "server" && flag.Name != "token" {
		return nil, nil
	}
	return c[flag.Name], nil
}

func defaultDataDir() string {
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "llmm")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "llmm-data"
	}
	return filepath.Join(home, ".local", "share", "llmm")
}

func modelPath(id string) string { return "/api/v1/models/" + url.PathEscape(id) }
