package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/hw"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/server"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

type serveCmd struct {
	Listen  string `help:"Address to listen at. Put a proxy with TLS in front before you open it to others." default:"127.0.0.1:8080"`
	DataDir string `help:"Folder for the registry, logs and state." default:"${data_dir}" type:"path"`
	Models  string `help:"A YAML file of models: imported at the first start, and written back at each registration." placeholder:"FILE" type:"path"`

	AdminPassword string `help:"Makes the account admin at the first start. Better as LLMM_ADMIN_PASSWORD." placeholder:"PASSWORD"`
	AdminToken    string `help:"Gives admin this API token. Better as LLMM_ADMIN_TOKEN." placeholder:"TOKEN"`

	sourceFlags `embed:""`
	engineFlags `embed:""`

	MaxConcurrentLoads int           `help:"Engines that may be starting at once." default:"4"`
	DrainTimeout       time.Duration `help:"How long requests may finish before an unload." default:"30s"`
	KeepEngines        bool          `help:"Leave engines running when the server stops; the next start finds them."`
	TrustedProxies     []string      `help:"Networks of proxies whose X-Forwarded-For and -Proto are believed: 10.0.0.0/8." placeholder:"CIDR"`
	LogLevel           slog.Level    `help:"debug, info, warn or error." default:"info"`
}

func (c *serveCmd) Run(e *env) error {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	proxies, err := networks(c.TrustedProxies)
	if err != nil {
		return err
	}
	// Listen first: a port that is taken is told before anything is touched.
	listener, err := (&net.ListenConfig{}).Listen(e.ctx, "tcp", c.Listen)
	if err != nil {
		return registry.Errorf(registry.CodeUnavailable, "cannot listen at %s: %w. Is another server running? Choose another address with --listen", c.Listen, err)
	}
	defer listener.Close()
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return registry.Errorf(registry.CodeUnavailable, "the data folder %s cannot be made: %w. Choose another one with --data-dir", c.DataDir, err)
	}
	unlock, err := lock(filepath.Join(c.DataDir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if os.Getenv("GOGC") == "" {
		// Live memory is small (30 MB at 100,000 models) and a collection takes a core from requests. Idle memory stays
		// within its budget; see docs/benchmarks.md.
		debug.SetGCPercent(200)
	}
	st, err := store.Open(e.ctx, store.Options{Path: filepath.Join(c.DataDir, "llmm.db"), Logger: log})
	if err != nil {
		return err
	}
	defer func() {
		if err := st.Close(); err != nil {
			log.Error("The registry could not be closed", "err", err)
		}
	}()
	accounts := auth.New(auth.Options{Store: st, Logger: log, AdminPassword: c.AdminPassword, AdminToken: c.AdminToken, TrustProxy: len(proxies) > 0})
	if err := accounts.Bootstrap(e.ctx); err != nil {
		return err
	}
	bus := events.New(events.Options{Logger: log})
	defer bus.Close()

	var m *manager.Manager
	places, fetcher, err := c.open(c.DataDir, c.ExternalHosts, c.ExternalPrivate, log)
	if err != nil {
		return err
	}
	sampler := hw.New(hw.Options{Logger: log, Disks: disks(c.DataDir, places), OnSample: func(registry.Sample) {
		if m != nil {
			bus.Sample(registry.EventResources, "", m.Resources())
		}
	}})
	var file *manifest.File
	if c.Models != "" {
		if file, err = manifest.OpenFile(c.Models); err != nil {
			log.Error("The models file cannot be used; the server starts without it", "path", c.Models, "err", err)
			file = nil
		}
	}
	engines := engineDir(c.DataDir)
	c.insecure = c.OllamaInsecure
	programs, err := c.loaders(st.InstallationID(), engines, c.DataDir, log)
	if err != nil {
		return err
	}
	m = manager.New(manager.Options{
		Store: st, Bus: bus, Hardware: sampler, Manifest: file, DataDir: c.DataDir, EngineDir: engines, Logger: log,
		Loaders: programs, Sources: places, Bandwidth: fetcher,
		MaxStarts: c.MaxConcurrentLoads, MaxFetches: c.MaxFetches, DrainTimeout: c.DrainTimeout,
	})
	run, stop := context.WithCancel(context.WithoutCancel(e.ctx))
	defer stop()
	go giveBackAtRest(run)
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		if err := sampler.Run(run); err != nil && run.Err() == nil {
			log.Error("The hardware is no longer read", "err", err)
		}
	}()

	web := server.New(server.Options{Manager: m, Store: st, Auth: accounts, Bus: bus, Logger: log, Version: Version, TrustedProxies: proxies})
	defer web.Close()
	srv := &http.Server{Handler: web, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	if err := m.Start(e.ctx); err != nil {
		return err
	}
	log.Info("LLMModelManager is ready", "address", "http://"+listener.Addr().String(), "version", Version, "data", c.DataDir)
	if accounts.NeedsFirstAccount(e.ctx) {
		log.Info("There is no account yet. Open the address in a browser on this machine to make the first one.")
	}

	select {
	case err := <-served:
		return registry.Errorf(registry.CodeUnavailable, "the server stopped answering: %w", err)
	case <-e.ctx.Done():
	}
	log.Info("Stopping; engines are given time to finish. Press Ctrl-C once more to leave at once.")
	end, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), c.DrainTimeout+40*time.Second)
	defer cancel()
	again(cancel)
	web.CloseStreams()
	closeErr := m.Close(end, c.KeepEngines)
	quick, cancelQuick := context.WithTimeout(end, 5*time.Second)
	defer cancelQuick()
	if err := srv.Shutdown(quick); err != nil {
		closeErr = errors.Join(closeErr, srv.Close())
	}
	stop()
	<-sampled
	return closeErr
}

// again calls leave at the next Ctrl-C: who asks twice does not want to wait.
func again(leave func()) {
	second := make(chan os.Signal, 1)
	signal.Notify(second, os.Interrupt, syscall.SIGTERM)
	go func() { <-second; leave() }()
}

// lock keeps a second server off the same data folder.
func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, registry.Errorf(registry.CodeUnavailable, "the data folder cannot be used: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, registry.Errorf(registry.CodeConflict, "another server uses the data folder %s. Stop it, or choose another folder with --data-dir", filepath.Dir(path))
	}
	return func() { f.Close() }, nil
}

func networks(list []string) ([]*net.IPNet, error) {
	out := make([]*net.IPNet, 0, len(list))
	for _, s := range list {
		_, n, err := net.ParseCIDR(s)
		if err != nil {
			return nil, fmt.Errorf("--trusted-proxies: %q is not a network such as 10.0.0.0/8", s)
		}
		out = append(out, n)
	}
	return out, nil
}
