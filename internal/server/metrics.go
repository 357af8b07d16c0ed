package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what GET /metrics shows. Labels are bounded: routes, not paths; models only where they are loaded.
type metrics struct {
	reg      *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	serve    http.Handler
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		reg:      prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "llmm_http_requests_total", Help: "Requests answered, by route and status."}, []string{"method", "route", "status"}),
		seconds:  prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "llmm_http_request_seconds", Help: "Seconds to answer, by route. Streams count until they end.", Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 30, 120}}, []string{"method", "route"}),
	}
	m.reg.MustRegister(m.requests, m.seconds, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), gauges{s})
	m.serve = promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{})
	return m
}

func (m *metrics) seen(c echo.Context, took time.Duration) {
	route := c.Path()
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(c.Request().Method, route, strconv.Itoa(c.Response().Status)).Inc()
	m.seconds.WithLabelValues(c.Request().Method, route).Observe(took.Seconds())
}

func (m *metrics) handler(c echo.Context) error {
	m.serve.ServeHTTP(c.Response(), c.Request())
	return nil
}

// gauges reads the state of devices and instances when it is asked.
type gauges struct{ s *Server }

var (
	memTotal     = prometheus.NewDesc("llmm_device_memory_bytes", "Memory of a device.", []string{"device"}, nil)
	memUsed      = prometheus.NewDesc("llmm_device_memory_used_bytes", "Memory of a device that is in use, by anybody.", []string{"device"}, nil)
	memPromised  = prometheus.NewDesc("llmm_reserved_bytes", "Memory promised to an instance.", []string{"device", "model_id"}, nil)
	busActive    = prometheus.NewDesc("llmm_event_subscribers", "Open event streams.", nil, nil)
	activeGauges = []*prometheus.Desc{memTotal, memUsed, memPromised, busActive}
)

func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range activeGauges {
		ch <- d
	}
}

func (g gauges) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	res := g.s.Manager.Resources()
	gauge(memTotal, res.Host.RAMTotal, "cpu")
	gauge(memUsed, res.Host.RAMTotal-res.Host.RAMAvailable, "cpu")
	for _, gpu := range res.GPUs {
		device := "cuda:" + strconv.Itoa(gpu.Index)
		gauge(memTotal, gpu.MemoryTotal, device)
		gauge(memUsed, gpu.MemoryUsed, device)
	}
	for _, r := range res.Reservations {
		gauge(memPromised, r.Bytes, r.Device, r.ModelID)
	}
	gauge(busActive, int64(g.s.Bus.Stats().Subscribers))
}
