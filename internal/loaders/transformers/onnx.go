package transformers

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var _ loaders.Narrower = (*Loader)(nil)

// onnxParams are the entries of custom_loader_params that mean something for a graph. The types and the quantisation of its
// weights are its own, and onnxruntime lays them out itself.
var onnxParams = []string{"task", "pooling", "normalize", "threads", "hang_after"}

// checkONNX refuses settings that an ONNX model does not have. CodeInvalid.
func checkONNX(m registry.Model, v params.Values) error {
	var errs []registry.FieldError
	if m.QuantizationBits != 0 {
		errs = append(errs, registry.FieldError{Field: "quantization_bits", Msg: "is not for ONNX models, which are quantised when they are exported; leave it out, and choose such a file by filename in custom_loader_params (model_quantized.onnx)"})
	}
	for name := range v {
		if !slices.Contains(onnxParams, name) {
			errs = append(errs, registry.FieldError{Field: "custom_loader_params." + name, Msg: "is not for ONNX models; these have " + strings.Join(onnxParams, ", ")})
		}
	}
	if len(errs) == 0 {
		return nil
	}
	slices.SortFunc(errs, func(a, b registry.FieldError) int { return cmp.Compare(a.Field, b.Field) })
	return &registry.Error{Code: registry.CodeInvalid, Op: "transformers.params", Msg: "The loader transformers refuses the model's settings", Fields: errs}
}

// onnxFolder splits the path of an ONNX artifact into the model's folder and the graph's path within. The artifact lists its
// files from that folder on; of a graph that came alone it is where the graph lies.
func onnxFolder(a registry.Artifact) (root, file string) {
	path := filepath.ToSlash(a.Path)
	for _, f := range a.Files {
		if rest, ok := strings.CutSuffix(path, "/"+f.Path); ok && len(f.Path) > len(file) {
			root, file = rest, f.Path
		}
	}
	if file == "" {
		root, file = filepath.Dir(a.Path), filepath.Base(a.Path)
	}
	return filepath.FromSlash(root), file
}

// noONNXRuntime says how to get what ONNX models need and others do not.
func noONNXRuntime(python string) error {
	f := &registry.Failure{Kind: registry.FailureEngineMissing, Msg: fmt.Sprintf("The Python at %s has no onnxruntime, which ONNX models need", python),
		Hint: fmt.Sprintf("Run `llmm engine install transformers`, or `uv pip install --python %s onnxruntime` if that Python is your own.", python)}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "transformers.Load", Msg: f.Msg, Failure: f}
}

// Narrow says of ONNX models what onnxruntime can use, which need not be what torch can; see loaders.Narrower.
func (l *Loader) Narrow(m registry.Model, v loaders.Version) loaders.Version {
	if m.ModelFormat != registry.FormatONNX {
		return v
	}
	l.known.mu.Lock()
	defer l.known.mu.Unlock()
	if v.Path == "" || l.known.e.path != v.Path {
		return v
	}
	v.Devices, v.NoCUDA = []registry.Device{registry.DeviceCPU}, ""
	if l.known.e.ONNXOnCUDA {
		v.Devices = append(v.Devices, registry.DeviceCUDA)
		return v
	}
	v.NoCUDA = noONNXOnCUDA(v.Path)
	return v
}

// noONNXOnCUDA says what ONNX models lack for CUDA.
func noONNXOnCUDA(python string) string {
	return fmt.Sprintf("The onnxruntime in the Python at %s is built without CUDA. Put onnxruntime-gpu in its place (`uv pip uninstall --python %s onnxruntime`, then `uv pip install --python %s onnxruntime-gpu`), "+
		"or set device_preference to cpu or auto.", python, python, python)
}

// judgeONNX says what speaks against an ONNX model; see loaders.Judge.
func (l *Loader) judgeONNX(m registry.Model, f registry.Facts, v loaders.Version) loaders.Objection {
	l.known.mu.Lock()
	known, onnxruntime := v.Path != "" && l.known.e.path == v.Path, l.known.e.ONNXRuntime
	l.known.mu.Unlock()
	switch {
	case known && onnxruntime == "":
		return loaders.Objection{Why: "has no onnxruntime in its Python, which ONNX models need; `llmm engine install transformers` brings it", Sure: true}
	case m.QuantizationBits != 0:
		return loaders.Objection{Why: "cannot quantise ONNX models, and quantization_bits is set", Sure: true,
			Hint: "Leave quantization_bits out, and choose a file that is quantised already by filename in custom_loader_params (model_quantized.onnx)."}
	case generates(f.Architecture):
		return loaders.Objection{Why: "runs ONNX models that embed, classify or fill masks, and not one that generates text, such as " + f.Architecture, Sure: true,
			Hint: "Use safetensors or a GGUF of the model."}
	}
	return loaders.Objection{}
}

// generates reports whether a class name of transformers is that of a model that writes text.
func generates(class string) bool {
	return slices.ContainsFunc([]string{"ForCausalLM", "LMHeadModel", "ForConditionalGeneration"}, func(end string) bool { return strings.HasSuffix(class, end) })
}

// What Python, onnxruntime 1.32 and the tensors of a batch take on the CPU, in bytes. Resident of all-MiniLM-L6-v2, in MiB: as
// it was exported (86 of weights) 190 at rest and 250 in a batch of long texts, with 8 bits (22 of weights) 220 and 350.
const onnxOverhead = 192 << 20

// copied is what onnxruntime makes of weights beside those of the file: the order that its kernels want, and of quantised ones
// some in 32 bits.
func copied(f registry.Facts, weights int64) int64 {
	if slices.Contains([]string{"i8", "u8", "i4", "u4"}, f.DType) {
		return 4 * weights
	}
	return weights / 4
}

// estimateONNX predicts what a graph takes: its weights as they are in the file, what onnxruntime copies of them, and a batch.
func estimateONNX(a registry.Artifact, device registry.Device) registry.Footprint {
	fp := registry.Footprint{Weights: cmp.Or(a.Facts.WeightBytes, a.Bytes), Basis: "ONNX graph"}
	if fp.Weights == 0 {
		return registry.Footprint{}
	}
	if a.Facts.Parameters == 0 {
		fp.Basis = "file size"
	}
	fp.Overhead = onnxOverhead + copied(a.Facts, fp.Weights)
	if device == registry.DeviceCUDA {
		fp.Overhead = cudaOverhead + copied(a.Facts, fp.Weights)
	}
	fp.Estimated = fp.Weights + fp.Overhead
	return fp
}
