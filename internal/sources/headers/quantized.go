package headers

import (
	"math"
	"strconv"
	"strings"
)

// quantized is how a checkpoint's weights are packed.
type quantized struct {
	method string // gptq, awq, bitsandbytes, fp8, mxfp4, compressed-tensors, …; "" for plain weights
	bits   int    // of a weight; 0 when it is not said
	float  string // the name of a 4-bit type of floats: nf4, fp4, nvfp4, mxfp4
}

// quantization reads quantization_config, or quantization as MLX calls it.
func (c config) quantization() quantized {
	var q quantized
	part := c.part("quantization_config", "quantization", "compression_config")
	if part == nil {
		return q
	}
	q.method = part.text("quant_method", "quant_type")
	q.bits = part.number("bits", "w_bit", "nbits")
	switch {
	case part.yes("load_in_4bit", "_load_in_4bit"):
		q.bits, q.float = 4, strings.ToLower(part.text("bnb_4bit_quant_type"))
	case part.yes("load_in_8bit", "_load_in_8bit"):
		q.bits = 8
	}
	for _, group := range part.part("config_groups") { // compressed-tensors
		g, _ := group.(map[string]any)
		if weights := config(g).part("weights"); weights != nil && q.bits == 0 {
			q.bits = weights.number("num_bits")
		}
	}
	algorithm := strings.ToLower(part.text("quant_algo", "format"))
	switch {
	case strings.Contains(algorithm, "nvfp4"):
		q.bits, q.float = 4, "nvfp4"
	case q.method == "mxfp4":
		q.float = "mxfp4"
	case q.method == "" && part.number("group_size") > 0:
		q.method = "mlx"
	case q.method == "":
		q.method = algorithm
	}
	if q.bits > 16 {
		q.bits = 0
	}
	return q
}

// label says how the weights are quantised, shortly: "gptq 4-bit".
func (q quantized) label() string {
	words := make([]string, 0, 2)
	if q.method != "" {
		words = append(words, q.method)
	}
	if q.bits > 0 {
		words = append(words, strconv.Itoa(q.bits)+"-bit")
	}
	return strings.Join(words, " ")
}

// helpers are tensors that say how to unpack others: no parameters of the model.
var helpers = []string{
	"scales", "qzeros", "g_idx", "biases", "scale", "scale_inv", "scale_2", "zero_point", "weight_shape", "absmax", "quant_map",
	"SCB", "weight_format",
}

// parameters returns how many parameters of the model an element count of this name and dtype stands for, and the type
// that each of them has.
func (q quantized) parameters(name, dtype string, elements int64) (int64, string) {
	if q.method == "" && q.bits == 0 {
		return elements, dtype
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Contains(name, ".quant_state.") {
		return 0, dtype
	}
	for _, h := range helpers {
		if strings.HasSuffix(last, h) && (h != "biases" || q.method == "mlx") {
			return 0, dtype
		}
	}
	return q.unpack(dtype, elements)
}

// unpack returns how many parameters so many elements of a dtype hold.
func (q quantized) unpack(dtype string, elements int64) (int64, string) {
	name := q.float
	if name == "" {
		name = "int" + strconv.Itoa(q.bits)
	}
	switch {
	case (dtype == "i32" || dtype == "u32") && q.bits > 0 && q.bits <= 16:
		if elements > math.MaxInt64/32 {
			return elements, dtype
		}
		return elements * 32 / int64(q.bits), name
	case dtype == "u8" && (q.bits == 4 || q.method == "mxfp4"):
		if elements > math.MaxInt64/2 {
			return elements, dtype
		}
		return elements * 2, name
	case dtype == "i8" && q.bits == 8:
		return elements, "int8"
	}
	return elements, dtype
}

// understood reports whether it is known how the method packs parameters.
func (q quantized) understood() bool {
	switch q.method {
	case "", "gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "mxfp4", "compressed-tensors", "modelopt", "mlx", "finegrained_fp8", "auto-round":
		return true
	}
	return false
}
