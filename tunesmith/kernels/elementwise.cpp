// The elementwise work of a decoder layer, one pass over memory each; plain.py says in torch what each function means.
//
// A training step reads and writes the same activations again and again: torch makes one pass per operation, and one
// more per conversion between bf16 and fp32. Here everything between two matrix products is one loop, computed in fp32
// and stored in the type of the model. Loops are written so that the compiler makes vector code of them; no intrinsics.
//
// Rows are shared among OpenMP threads in fixed blocks and no sum crosses a block, so that results do not depend on
// timing. Every function exists for bf16 and float; arrays are contiguous, sizes are in elements.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "numbers.h"

namespace {

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

template <class T>
void norm(const T* x, const T* weight, float eps, T* out, float* rstd, int64_t N, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i++) {
        const T* row = x + i * D;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < D; j++) squares += load(row[j]) * load(row[j]);
        float scale = rstd[i] = 1.0f / std::sqrt(squares / D + eps);
#pragma omp simd
        for (int64_t j = 0; j < D; j++) store(out + i * D + j, load(row[j]) * scale * load(weight[j]));
    }
}

// dx = residual + rstd * (g w - x rstd^2 mean(g w x)); with weight_grads (blocks x D), each block of rows adds its own
template <class T>
void norm_backward(const T* grad, const T* x, const T* weight, const float* rstd, const T* residual, T* dx,
                   float* weight_grads, int64_t blocks, int64_t N, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float* sums = weight_grads ? weight_grads + block * D : nullptr;
        for (int64_t i = N * block / blocks; i < N * (block + 1) / blocks; i++) {
            const T *g = grad + i * D, *row = x + i * D;
            float dot = 0, scale = rstd[i];
#pragma omp simd reduction(+ : dot)
            for (int64_t j = 0; j < D; j++) dot += load(g[j]) * load(weight[j]) * load(row[j]);
            float back = dot * scale * scale * scale / D;
#pragma omp simd
            for (int64_t j = 0; j < D; j++)
                store(dx + i * D + j, load(residual[i * D + j]) + load(g[j]) * load(weight[j]) * scale - load(row[j]) * back);
            if (sums)
#pragma omp simd
                for (int64_t j = 0; j < D; j++) sums[j] += load(g[j]) * load(row[j]) * scale;
        }
    }
}

// silu(gate) * up, where each row of `pair` holds I gates and then I ups
template <class T>
void swiglu(const T* pair, T* out, int64_t N, int64_t I) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i++) {
        const T *gate = pair + 2 * i * I, *up = gate + I;
#pragma omp simd
        for (int64_t j = 0; j < I; j++) {
            float g = load(gate[j]);
            store(out + i * I + j, g * sigmoid(g) * load(up[j]));
        }
    }
}

template <class T>
void swiglu_backward(const T* grad, const T* pair, T* dpair, T* out, int64_t N, int64_t I) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i++) {
        const T *gate = pair + 2 * i * I, *up = gate + I, *d = grad + i * I;
        T *dgate = dpair + 2 * i * I, *dup = dgate + I;
#pragma omp simd
        for (int64_t j = 0; j < I; j++) {
            float g = load(gate[j]), u = load(up[j]), s = sigmoid(g), a = load(d[j]);
            store(dgate + j, a * u * s * (1 + g * (1 - s)));
            store(dup + j, a * g * s);
            store(out + i * I + j, g * s * u);
        }
    }
}

// Exponentials of x[0..n) less their maximum, into `out`, and their sum. The rest of a loop that fills no vector costs as
// much as many vectors: so they are computed to the end of the last vector, where nothing adds. A vocabulary's many small
// terms would vanish beside a large one, always to the same side: so they are added up in stretches first.
constexpr int64_t LANES = 16, STRETCH = 64 * LANES;

template <class T>
double exponentials(const T* x, int64_t n, float* out, float* maximum) {
    const int64_t padded = (n + LANES - 1) / LANES * LANES;
    for (int64_t j = n; j < padded; j++) out[j] = -INFINITY;
    for (int64_t j = 0; j < n; j++) out[j] = load(x[j]);
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < padded; j++) top = out[j] > top ? out[j] : top;
    double total = 0;
    for (int64_t from = 0; from < padded; from += STRETCH) {
        const int64_t to = std::min(from + STRETCH, padded);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = from; j < to; j++) {
            out[j] = fast_exp(out[j] - top);
            sum += out[j];
        }
        total += sum;
    }
    *maximum = top;
    return total;
}

// In place: logits become d logp(label) / d logits = onehot(label) - softmax; beside them logp, and whether the label is
// the first of the largest
template <class T>
void label_softmax(T* logits, const int64_t* labels, float* logp, bool* correct, int64_t N, int64_t V) {
    const int64_t room = V + LANES;
    std::vector<float> rooms(omp_get_max_threads() * room);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < N; i++) {
        T* x = logits + i * V;
        float* wide = rooms.data() + omp_get_thread_num() * room;
        float top, label = load(x[labels[i]]);
        const double sum = exponentials(x, V, wide, &top);
        logp[i] = label - top - static_cast<float>(std::log(sum));
        correct[i] = label == top;
        for (int64_t j = 0; correct[i] && j < labels[i]; j++) correct[i] = load(x[j]) != top;
        const float scale = static_cast<float>(-1.0 / sum);
        for (int64_t j = 0; j < V; j++) store(x + j, wide[j] * scale);
        store(x + labels[i], 1.0f + wide[labels[i]] * scale);
    }
}

}  // namespace

#define EXPORT(T, name)                                                                                                \
    extern "C" int norm_##name(const T* x, const T* weight, float eps, T* out, float* rstd, int64_t N, int64_t D) {    \
        return status_of([&] { norm(x, weight, eps, out, rstd, N, D); });                                              \
    }                                                                                                                  \
    extern "C" int norm_backward_##name(const T* grad, const T* x, const T* weight, const float* rstd,                 \
                                        const T* residual, T* dx, float* weight_grads, int64_t blocks, int64_t N,      \
                                        int64_t D) {                                                                   \
        return status_of([&] { norm_backward(grad, x, weight, rstd, residual, dx, weight_grads, blocks, N, D); });     \
    }                                                                                                                  \
    extern "C" int swiglu_##name(const T* pair, T* out, int64_t N, int64_t I) {                                        \
        return status_of([&] { swiglu(pair, out, N, I); });                                                            \
    }                                                                                                                  \
    extern "C" int swiglu_backward_##name(const T* grad, const T* pair, T* dpair, T* out, int64_t N, int64_t I) {      \
        return status_of([&] { swiglu_backward(grad, pair, dpair, out, N, I); });                                      \
    }                                                                                                                  \
    extern "C" int label_softmax_##name(T* logits, const int64_t* labels, float* logp, bool* correct, int64_t N,       \
                                        int64_t V) {                                                                   \
        return status_of([&] { label_softmax(logits, labels, logp, correct, N, V); });                                 \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
