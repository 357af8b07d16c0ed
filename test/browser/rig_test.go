package browser

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// weights is the sample model that scripts/setup fetched.
func weights(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("LLMM_TEST_GGUF"); p != "" {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(cache, "llmm", "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("the sample model is missing (%v); run scripts/setup", err)
	}
	return p
}

var listening = regexp.MustCompile(`msg="LLMModelManager is ready" address=(http://\S+)`)

// serve builds and starts the real program as a newcomer has it: the guide's models file, no account. It returns its
// address. env is added to its environment.
func serve(t *testing.T, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "llmm")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../..").CombinedOutput(); err != nil {
		t.Fatalf("build llmm: %v\n%s", err, out)
	}
	models, err := os.ReadFile("../../models.yaml")
	if err != nil {
		t.Fatal(err)
	}
	yaml := filepath.Join(dir, "models.yaml")
	if err := os.WriteFile(yaml, models, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(dir, "data"), "--models", yaml)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LLMM_") { // who runs the test may have an account and a token of their own
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	if p := os.Getenv("LLMM_TEST_LLAMA_SERVER"); p != "" {
		cmd.Env = append(cmd.Env, "LLMM_LLAMA_SERVER="+p)
	}
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		sc := bufio.NewScanner(logs)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			t.Log(sc.Text())
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server did not end cleanly: %v", err)
		}
	})
	select {
	case url := <-address:
		return url
	case <-ended:
		t.Fatal("the server ended before it was ready")
		return ""
	}
}

// tab is one tab of a headless Chromium, and what that complained about.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string
	complained chan struct{} // has a value when there is a new complaint
}

// chromium finds the browser.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	t.Fatal("there is no Chromium on the PATH; run scripts/setup-ci, which installs it")
	return ""
}

func open(t *testing.T) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), chromedp.ExecPath(chromium(t)), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-default-apps", true), chromedp.Flag("disable-extensions", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("force-color-profile", "srgb"), chromedp.Flag("password-store", "basic"))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		// The browser is waited for, since its folder is removed after this.
		if err := chromedp.Cancel(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Logf("closing the browser: %v", err)
		}
		cancel()
	})
	b := &tab{t: t, ctx: ctx, complained: make(chan struct{}, 1)}
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	return b
}

// hear keeps what the browser complains about: exceptions, console.error, and in its log what the
// Content-Security-Policy refused and answers with an error status.
func (b *tab) hear(ev any) {
	says := ""
	switch ev := ev.(type) {
	case *cdpruntime.EventExceptionThrown:
		says = "exception: " + ev.ExceptionDetails.Text
		if ev.ExceptionDetails.Exception != nil {
			says += " " + ev.ExceptionDetails.Exception.Description
		}
	case *cdpruntime.EventConsoleAPICalled:
		if ev.Type == cdpruntime.ConsoleAPICalledTypeError || ev.Type == cdpruntime.ConsoleAPICalledTypeWarning {
			says = "console." + string(ev.Type) + ":"
			for _, a := range ev.Args {
				says += " " + string(a.Value) + a.Description
			}
		}
	case *log.EventEntryAdded:
		if ev.Entry.Level == log.EntryLevelError {
			says = fmt.Sprintf("%s: %s %s", ev.Entry.Source, ev.Entry.Text, ev.Entry.URL)
		}
	}
	if says == "" {
		return
	}
	b.mu.Lock()
	b.complaints = append(b.complaints, says)
	b.mu.Unlock()
	select {
	case b.complained <- struct{}{}:
	default:
	}
}

// expect waits for a complaint that contains text, and takes it away.
func (b *tab) expect(text string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	for {
		b.mu.Lock()
		for i, c := range b.complaints {
			if strings.Contains(c, text) {
				b.complaints = append(b.complaints[:i], b.complaints[i+1:]...)
				b.mu.Unlock()
				return
			}
		}
		b.mu.Unlock()
		select {
		case <-b.complained:
		case <-ctx.Done():
			b.t.Fatalf("the browser should have complained about %q", text)
		}
	}
}

// quiet fails on every complaint that nobody expected.
func (b *tab) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		b.t.Errorf("the browser complains: %s", c)
	}
	b.complaints = nil
}

func (b *tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatalf("%s: %v\n%s", what, err, b.seen())
	}
}

func (b *tab) open(url string) {
	b.t.Helper()
	b.do("open "+url, chromedp.Navigate(url))
}

// click clicks what sel finds. A live update may put another element in its place between finding and clicking; then it is
// looked for again.
func (b *tab) click(sel string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	for {
		err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(sel), chromedp.NodeVisible))
		if err == nil {
			return
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "Could not find node") {
			b.t.Fatalf("click %s: %v\n%s", sel, err, b.seen())
		}
	}
}

// press clicks as a hand does, with a while between down and up, in which held is called.
func (b *tab) press(sel string, held func()) {
	b.t.Helper()
	// A hand waits until what it aims at lies still: what arrives above it moves it down, and a window of another size all of it.
	_ = js[bool](b, `delete window.aim`)
	b.until(fmt.Sprintf(`(() => { const aim = window.aim ??= { at: "", frames: 0 }, e = document.querySelector(%q), r = e?.getBoundingClientRect(), at = r && [innerWidth, r.x, r.y].join(); aim.frames = at === aim.at ? aim.frames + 1 : 0; aim.at = at;
		return aim.frames > 3 && e.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)); })()`, sel))
	at := js[struct{ X, Y float64 }](b, fmt.Sprintf(`(() => { const r = document.querySelector(%q).getBoundingClientRect(); return { X: r.x + r.width / 2, Y: r.y + r.height / 2 }; })()`, sel))
	b.do("press "+sel, chromedp.MouseEvent(input.DispatchMouseEventTypeMousePressed, at.X, at.Y, chromedp.ButtonLeft, chromedp.ClickCount(1)))
	held()
	b.do("let go of "+sel, chromedp.MouseEvent(input.DispatchMouseEventTypeMouseReleased, at.X, at.Y, chromedp.ButtonLeft, chromedp.ClickCount(1)))
}

func (b *tab) write(sel, text string) {
	b.t.Helper()
	b.do("write into "+sel, chromedp.SendKeys(chromedp.CSS(sel), text, chromedp.NodeVisible))
}

// rewrite puts text in the place of what is in a field.
func (b *tab) rewrite(sel, text string) {
	b.t.Helper()
	js[any](b, fmt.Sprintf(`document.querySelector(%q).select()`, sel))
	b.write(sel, text)
}

func js[T any](b *tab, expr string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expr))
	if err != nil {
		b.t.Fatalf("evaluate %s: %v", expr, err)
	}
	return v
}

// until waits for a JavaScript expression to become true, also across navigations, at most for a minute.
func (b *tab) until(expr string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	for {
		_, err := chromedp.Run(ctx, chromedp.Poll[bool]("!!("+expr+")", chromedp.WithPollingTimeout(0)))
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			b.t.Fatalf("never true: %s\n%s", expr, b.seen())
		}
		// A navigation took the page away under the poll: wait for the new one.
		if err := chromedp.Do(ctx, chromedp.WaitReady(chromedp.CSS("body"))); err != nil {
			b.t.Fatalf("no page while waiting for %s: %v", expr, err)
		}
	}
}

// seen is what the page shows, for a failure.
func (b *tab) seen() string {
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText.slice(0, 3000)`))
	if err != nil {
		return err.Error()
	}
	return v
}

// shape is a window and a theme in which pages are looked at.
type shape struct {
	width, height int64
	theme         string
}

var shapes = []shape{{1280, 860, "light"}, {1280, 860, "dark"}, {390, 844, "light"}, {390, 844, "dark"}}

func (b *tab) resize(s shape, height int64) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: s.width, Height: height, DeviceScaleFactor: 1, Mobile: s.width < 760})
	if err != nil {
		b.t.Fatal(err)
	}
	_, err = chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s.theme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
	if err != nil {
		b.t.Fatal(err)
	}
}

// look views the page that is open in every shape: it does not scroll sideways, and dark is dark. With
// LLMM_SCREENSHOTS=DIR it is photographed as DIR/name-width-theme.png.
func (b *tab) look(name string) {
	b.t.Helper()
	dir := os.Getenv("LLMM_SCREENSHOTS")
	for _, s := range shapes {
		b.resize(s, s.height)
		b.until(fmt.Sprintf(`innerWidth === %d && matchMedia("(prefers-color-scheme: %s)").matches`, s.width, s.theme))
		if wide := js[string](b, sideways); wide != "" {
			b.t.Errorf("%s at %d px scrolls sideways: %s", name, s.width, wide)
		}
		if got := js[string](b, brightness); got != s.theme {
			b.t.Errorf("%s should be %s, its background is %s", name, s.theme, got)
		}
		if dir == "" {
			continue
		}
		b.resize(s, max(js[int64](b, "document.documentElement.scrollHeight"), s.height))
		b.picture(filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", name, s.width, s.theme)))
	}
	b.resize(shapes[0], shapes[0].height)
	b.until(fmt.Sprintf("innerWidth === %d", shapes[0].width))
}

func (b *tab) picture(path string) {
	b.t.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// sideways is "" or what sticks out of the page.
const sideways = `(() => {
	const root = document.documentElement;
	if (root.scrollWidth <= root.clientWidth) return "";
	const out = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".log, .vh, .defs"));
	return root.scrollWidth + " > " + root.clientWidth + ", for example " + out.slice(0, 3).map((e) => e.tagName + "." + (e.className?.baseVal ?? e.className)).join(" ");
})()`

const brightness = `(() => {
	const c = document.createElement("canvas").getContext("2d");
	c.fillStyle = getComputedStyle(document.body).backgroundColor;
	c.fillRect(0, 0, 1, 1);
	const [r, g, b] = c.getImageData(0, 0, 1, 1).data;
	return r + g + b > 382 ? "light" : "dark";
})()`
