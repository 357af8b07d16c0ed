package vllm

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/openaitest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// cudaName is the name under which the stand-in says that it is built for CUDA.
const cudaName = "vllm-for-cuda"

// recorded is what the real vLLM 0.32.0 answered at /metrics: a tiny model on the CPU, after three requests.
//
//go:embed testdata/metrics-0.32.0.txt
var recorded []byte

// standIn makes this test binary a vLLM: it understands the command line and answers the endpoints that the loader uses, and
// prints what version 0.32.0 prints. A file named fault beside the weights says how it fails.
func standIn(args []string) int {
	if args[0] == "--version" {
		fmt.Println("0.32.0" + map[bool]string{false: "+cpu"}[filepath.Base(os.Args[0]) == cudaName])
		return 0
	}
	if args[0] == "--share" {
		if err := shareMemory(args[1]); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("mapped")
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM)
		<-end
		return 0
	}
	model := args[1]
	fl := flag.NewFlagSet("vllm", flag.ContinueOnError)
	host, port := fl.String("host", "", ""), fl.Int("port", 0, "")
	name := fl.String("served-model-name", "", "")
	for _, s := range []string{"max-model-len", "dtype", "kv-cache-dtype", "quantization", "max-num-seqs", "max-num-batched-tokens", "seed", "runner", "tokenizer", "tensor-parallel-size", "gpu-memory-utilization"} {
		fl.String(s, "", "")
	}
	sleeps := fl.Bool("enable-sleep-mode", false, "")
	for _, s := range []string{"enforce-eager", "no-enable-prefix-caching", "trust-remote-code"} {
		fl.Bool(s, false, "")
	}
	if err := fl.Parse(args[2:]); err != nil {
		return 2
	}
	if t := fl.Lookup("tokenizer").Value.String(); t != "" {
		if _, err := os.Stat(t); err != nil || !filepath.IsAbs(t) { // offline, it would look for a repository
			fmt.Println("no tokenizer", t)
			return 1
		}
		fmt.Println("tokenizer", t)
	}
	fault, err := os.ReadFile(filepath.Join(model, "fault"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Println(err)
		return 1
	}
	faults := strings.Fields(string(fault))
	stubborn := slices.Contains(faults, "stubborn")
	if stubborn {
		signal.Ignore(syscall.SIGTERM)
		if err := exec.Command("sleep", "600").Start(); err != nil {
			return 1
		}
	}
	if slices.Contains(faults, "shared") { // maps shared memory under a name that says nothing, as vLLM does
		name := fmt.Sprintf("/dev/shm/psm_%08x%08x", os.Getppid(), os.Getpid())
		child := exec.Command(os.Args[0], "--share", name)
		child.Env = []string{"PATH=" + os.Getenv("PATH")} // vLLM's processes write their titles over their environment, our tag included
		out, err := child.StdoutPipe()
		if err != nil || child.Start() != nil {
			return 1
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it has mapped it
			return 1
		}
		fmt.Println("shares " + name)
	}
	switch f := strings.TrimSpace(string(fault)); {
	case f == "exit":
		return 3
	case stubborn, slices.Contains(faults, "shared"):
	case f != "":
		fmt.Println("(EngineCore pid=1) INFO engine core starts")
		f, far := strings.CutPrefix(f, "far ")
		fmt.Println(f)
		if far { // as two other processes then tell that the engine's has ended
			fmt.Print(strings.Repeat("(APIServer pid=9)   File \"core.py\", line 1, in wait\n", 200), "RuntimeError: Engine core initialization failed. See root cause above.\n")
		}
		return 1
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", *host, *port))
	if err != nil {
		fmt.Println("OSError: [Errno 98] Address already in use")
		return 1
	}
	var loaded, asleep atomic.Bool
	service := &openaitest.Service{Key: os.Getenv("VLLM_API_KEY"), Models: []string{*name}}
	if fl.Lookup("runner").Value.String() == "pooling" {
		service.APIs = []registry.API{registry.APIEmbeddings}
	}
	service.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		dev := *sleeps && os.Getenv("VLLM_SERVER_DEV_MODE") == "1"
		switch path := r.URL.Path; {
		case path == "/metrics": // without a key, as vLLM does
			_, _ = w.Write(recorded)
		case !loaded.Load():
			openaitest.Problem(w, http.StatusServiceUnavailable, "loading")
		case dev && path == "/sleep" && r.URL.Query().Get("level") != "":
			asleep.Store(true)
		case dev && path == "/wake_up":
			asleep.Store(r.URL.Query().Get("tags") == "weights")
		case dev && path == "/is_sleeping":
			_, _ = fmt.Fprintf(w, `{"is_sleeping":%t}`, asleep.Load())
		case dev && (path == "/collective_rpc" || path == "/reset_prefix_cache"):
		case asleep.Load() && strings.HasPrefix(path, "/v1/"):
			openaitest.Problem(w, http.StatusInternalServerError, "asleep")
		default:
			return false
		}
		return true
	}
	if dir := os.Getenv("VLLM_RPC_BASE_PATH"); dir != "" { // what zmq leaves when it is killed
		if err := os.WriteFile(filepath.Join(dir, "5a3c-socket"), nil, 0o600); err != nil {
			fmt.Println(err)
		}
	}
	pause := 10 * time.Millisecond
	if stubborn && slices.Contains(faults, "shared") {
		pause = 100 * time.Millisecond // until what it shares is noted
	}
	go func() {
		fmt.Println("(EngineCore pid=1) INFO [gpu_model_runner.py:1] Starting to load model " + model)
		for i := range 5 {
			fmt.Printf("Loading safetensors checkpoint shards:  %d%% Completed | %d/4 [00:00<00:00, 41.23it/s]\n", i*25, i)
			time.Sleep(pause) // loading takes time; a test kills within it
		}
		fmt.Println("INFO Loading weights took 0.03 seconds")
		loaded.Store(true)
	}()
	term := make(chan os.Signal, 1)
	if !stubborn {
		signal.Notify(term, syscall.SIGTERM)
	}
	go func() { fmt.Println(http.Serve(listener, service)) }() //nolint:gosec // a stand-in for tests
	<-term
	return 0
}

func shareMemory(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(4096); err != nil {
		return err
	}
	_, err = syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	return err
}

func completion() httpengine.API {
	return httpengine.API{Path: "/v1/completions", Body: map[string]any{"model": "org/model", "prompt": "Hi"}}
}
