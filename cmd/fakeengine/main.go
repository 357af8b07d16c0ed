// Command fakeengine is a small program that behaves like an engine and knows no model: it loads by steps, speaks the
// OpenAI API, and can be told to fail in every way in which real engines fail. Tests and demonstrations run it.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// The faults that --fault accepts.
const (
	faultNone         = "none"
	faultHangLoading  = "hang_loading"  // stops moving at --at-step
	faultCrashLoading = "crash_loading" // aborts at --at-step
	faultOOMLoading   = "oom_loading"   // prints what engines print and exits at --at-step
	faultCorrupt      = "corrupt"       // refuses the file
	faultArch         = "unsupported"   // refuses the architecture
	faultCrashReady   = "crash_ready"   // aborts just after its first answer
	faultCrashRequest = "crash_request" // answers once, then aborts on the next request
	faultRefuseHealth = "refuse_health" // /health is never 200
	faultEndlessLog   = "endless_log"   // writes without pause once it is ready
)

type options struct {
	host, socket, model, alias, fault   string
	port, steps, atStep, memoryMB       int
	stepMS, answerMS                    int
	manual, ignoreTerm, grandchild, emb bool
}

func main() {
	var o options
	flag.StringVar(&o.host, "host", "127.0.0.1", "address to listen on")
	flag.IntVar(&o.port, "port", 8080, "port to listen on")
	flag.StringVar(&o.socket, "socket", "", "path of a socket to listen on in place of the port")
	flag.StringVar(&o.model, "model", "", "the weights; only their presence matters")
	flag.StringVar(&o.alias, "alias", "fake", "the model's name in answers")
	flag.StringVar(&o.fault, "fault", faultNone, "how to fail")
	flag.IntVar(&o.atStep, "at-step", 1, "the step at which a fault of loading happens")
	flag.IntVar(&o.steps, "steps", 4, "steps of loading")
	flag.IntVar(&o.stepMS, "step-ms", 0, "milliseconds for each step")
	flag.BoolVar(&o.manual, "manual", false, "take a step only when told: POST /control/advance")
	flag.IntVar(&o.memoryMB, "memory-mb", 0, "MiB of memory to take, really, while loading")
	flag.IntVar(&o.answerMS, "answer-ms", 0, "milliseconds before each word of an answer")
	flag.BoolVar(&o.ignoreTerm, "ignore-sigterm", false, "go on when asked to end")
	flag.BoolVar(&o.grandchild, "grandchild", false, "start a process that would stay behind")
	flag.BoolVar(&o.emb, "embeddings", false, "embed instead of chatting")
	wait := flag.Bool("wait", false, "do nothing until killed: what --grandchild starts")
	flag.Parse()
	if *wait {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		select {}
	}
	os.Exit(run(o))
}

func run(o options) int {
	if o.ignoreTerm {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	}
	l, err := o.listen()
	if err != nil {
		fmt.Printf("fakeengine: couldn't bind: %v\n", err)
		return 1
	}
	if o.grandchild {
		if err := startGrandchild(); err != nil {
			fmt.Printf("fakeengine: cannot start a grandchild: %v\n", err)
			return 1
		}
	}
	s := &server{o: o, key: os.Getenv("FAKEENGINE_KEY"), advance: make(chan struct{}, 1024)}
	hs := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = hs.Serve(l) }()
	if code := s.load(); code != 0 {
		return code
	}
	s.ready.Store(true)
	fmt.Println("fakeengine: ready")
	if o.fault == faultEndlessLog {
		go chatter()
	}
	end := make(chan os.Signal, 1)
	if !o.ignoreTerm {
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	}
	<-end
	fmt.Println("fakeengine: asked to end")
	_ = hs.Close()
	return 0
}

// listen opens the port or the socket. The latter from its folder: its whole path may be too long for the kernel.
func (o options) listen() (net.Listener, error) {
	if o.socket == "" {
		return net.Listen("tcp", fmt.Sprintf("%s:%d", o.host, o.port)) //nolint:noctx // it does not wait
	}
	if err := os.Chdir(filepath.Dir(o.socket)); err != nil {
		return nil, err
	}
	syscall.Umask(0o177) // it writes no other file
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Base(o.socket), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // that is the manager's to do, as with every engine
	return l, nil
}

// load takes the steps. A code other than 0 is the exit code of a load that failed.
func (s *server) load() int {
	o := s.o
	if fi, err := os.Stat(o.model); o.model != "" && err != nil {
		fmt.Printf("fakeengine: failed to open %s: no such file\n", o.model)
		return 1
	} else if o.model != "" && !fi.IsDir() && fi.Size() == 0 {
		fmt.Printf("fakeengine: %s is empty, model is corrupted or incomplete\n", o.model)
		return 1
	}
	fmt.Printf("fakeengine: progress 0/%d\n", o.steps)
	for i := 1; i <= o.steps; i++ {
		if i == o.atStep {
			switch o.fault {
			case faultHangLoading:
				fmt.Println("fakeengine: hanging")
				select {}
			case faultCrashLoading:
				abort("while loading")
			case faultOOMLoading:
				fmt.Println("fakeengine: failed to allocate buffer of size 99999999999: out of memory")
				return 1
			case faultCorrupt:
				fmt.Println("fakeengine: tensor 'token_embd.weight' data is not within the file bounds, model is corrupted or incomplete")
				return 1
			case faultArch:
				fmt.Println("fakeengine: unknown model architecture: 'zork'")
				return 1
			}
		}
		if o.manual {
			<-s.advance
		}
		if o.stepMS > 0 {
			time.Sleep(time.Duration(o.stepMS) * time.Millisecond)
		}
		if o.memoryMB > 0 {
			s.take(o.memoryMB*i/o.steps - o.memoryMB*(i-1)/o.steps)
		}
		fmt.Printf("fakeengine: progress %d/%d\n", i, o.steps)
	}
	return 0
}

// take allocates that many MiB and touches every page, so that they count.
func (s *server) take(mb int) {
	b := make([]byte, mb<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	s.memory = append(s.memory, b)
}

// abort ends the process by SIGABRT, as a failed assertion does, and leaves no core file.
func abort(when string) {
	fmt.Printf("fakeengine: assertion failed %s\n", when)
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	debug.SetTraceback("crash") // without it Go would turn the signal into exit code 2
	panic("assertion failed " + when)
}

// chatter fills the log for ever.
func chatter() {
	line := strings.Repeat("fakeengine: I have a lot to say. ", 32) + "\n"
	for {
		_, _ = os.Stdout.WriteString(line)
	}
}

// startGrandchild starts one process in our group and one in a session of its own; both ignore SIGTERM.
func startGrandchild() error {
	for _, own := range []bool{false, true} {
		c := exec.Command("/proc/self/exe", "--wait") //nolint:noctx // it is meant to stay
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: own}
		if err := c.Start(); err != nil {
			return err
		}
		fmt.Printf("fakeengine: grandchild %d\n", c.Process.Pid)
	}
	return nil
}
