package vllm

import (
	"github.com/industriverse/llmmodelmanager/internal/loaders/metrics"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// metricNames are those of vLLM 0.32.0, and after them what older versions called the same: gpu_cache_usage_perc became
// kv_cache_usage_perc in 0.10, and time_per_output_token_seconds is not used here.
var metricNames = metrics.Names{
	Running: []string{"vllm:num_requests_running"}, Waiting: []string{"vllm:num_requests_waiting"},
	KVCacheUse:   []string{"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"},
	PromptTokens: []string{"vllm:prompt_tokens_total", "vllm:prompt_tokens"}, GeneratedTokens: []string{"vllm:generation_tokens_total", "vllm:generation_tokens"},
	Preemptions: []string{"vllm:num_preemptions_total", "vllm:num_preemptions"},
	FirstToken:  []string{"vllm:time_to_first_token_seconds"}, WholeAnswer: []string{"vllm:e2e_request_latency_seconds"},
}

func activity(text []byte) (registry.Activity, error) { return metrics.Read(text, metricNames) }
