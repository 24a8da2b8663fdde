// The elementwise work of a decoder layer, one pass over memory each; plain.py says in torch what each function means.
//
// A training step reads and writes the same activations again and again: torch makes one pass per operation, and one
// more per conversion between bf16 and fp32. Here everything between two matrix products is one loop, computed in fp32
// and stored in the type of the model. Loops are written so that the compiler makes vector code of them; no intrinsics.
//
// Rows are shared among OpenMP threads in fixed blocks and no sum crosses a block, so that results do not depend on
// timing. Every function exists for bf16 and float; arrays are contiguous, sizes are in elements.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bf16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline void store(float* to, float x) { *to = x; }
inline void store(bf16* to, float x) {  // round to nearest even; a NaN keeps its exponent and a set mantissa bit
    uint32_t wide;
    std::memcpy(&wide, &x, 4);
    uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    to->bits = uint16_t((wide & 0x7fffffff) > 0x7f800000 ? (wide >> 16) | 0x40 : rounded);
}

// exp by 2^n * polynomial (Cephes' expf); within 2 ulp, and vectorised where libm's is not. NaN passes through.
inline float fast_exp(float x) {
    x = x < -87.3f ? -87.3f : (x > 88.3f ? 88.3f : x);
    float n = std::floor(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t power = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

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

// Heads of width D between token order, rows of `stride` values, and document order: document by document, head by
// head, token by token, where a document has room for more tokens than it has: what it does not fill is zero. With cos
// and sin (rows of D, one per token), each head is turned (rotary embedding) by `direction` times its angle on the way,
// and scaled.
template <class T>
void heads(T* tokens, T* documents, const int64_t* ends, const int64_t* room_ends, int64_t count, int64_t H, int64_t D,
           int64_t stride, const T* cos, const T* sin, float direction, float scale, int to_documents) {
    const int64_t N = ends[count - 1];
    std::vector<int64_t> document(N);
    for (int64_t i = 0, at = 0; at < N; at++) {
        while (at >= ends[i]) i++;
        document[at] = i;
    }
    for (int64_t i = 0; to_documents && i < count; i++) {
        const int64_t start = i ? room_ends[i - 1] : 0, room = room_ends[i] - start, L = ends[i] - (i ? ends[i - 1] : 0);
        for (int64_t h = 0; h < H && L < room; h++)
            std::memset((void*)(documents + start * H * D + (h * room + L) * D), 0, (room - L) * D * sizeof(T));
    }
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < N; at++) {
        const int64_t i = document[at], first = i ? ends[i - 1] : 0, start = i ? room_ends[i - 1] : 0;
        const int64_t room = room_ends[i] - start;
        for (int64_t h = 0; h < H; h++) {
            T* there = documents + start * H * D + (h * room + at - first) * D;
            T* here = tokens + at * stride + h * D;
            const T* from = to_documents ? here : there;
            T* to = to_documents ? there : here;
            if (!cos) {
                if (scale == 1.0f)
                    std::memcpy(to, from, D * sizeof(T));
                else
#pragma omp simd
                    for (int64_t j = 0; j < D; j++) store(to + j, load(from[j]) * scale);
                continue;
            }
            const T *c = cos + at * D, *s = sin + at * D;
#pragma omp simd
            for (int64_t j = 0; j < D / 2; j++) {
                float a = load(from[j]), b = load(from[j + D / 2]);
                // backwards, the transposed turn: the two halves swap the sines that they meet
                float low = direction > 0 ? load(s[j]) : load(s[j + D / 2]);
                float high = direction > 0 ? load(s[j + D / 2]) : load(s[j]);
                store(to + j, (a * load(c[j]) - direction * b * low) * scale);
                store(to + j + D / 2, (b * load(c[j + D / 2]) + direction * a * high) * scale);
            }
        }
    }
}

// Exponentials of x[0..n) less their maximum, into `out`, and their sum. Short rows are the rule, and a loop's rest that
// fills no vector costs as much as many vectors: so they are computed to the end of the last vector, where nothing adds.
constexpr int64_t LANES = 16;

template <class T>
float exponentials(const T* x, int64_t n, float* out, float* maximum) {
    const int64_t padded = (n + LANES - 1) / LANES * LANES;
    for (int64_t j = n; j < padded; j++) out[j] = -INFINITY;
    for (int64_t j = 0; j < n; j++) out[j] = load(x[j]);
    float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < padded; j++) top = out[j] > top ? out[j] : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < padded; j++) {
        out[j] = fast_exp(out[j] - top);
        sum += out[j];
    }
    *maximum = top;
    return sum;
}

// In place: row i of each L x U matrix becomes the softmax of what query i sees, columns (i + offset - window, i + offset]
template <class T>
void softmax(T* scores, int64_t batch, int64_t L, int64_t U, int64_t offset, int64_t window) {
#pragma omp parallel
    {
        std::vector<float> wide(U + LANES);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < batch * L; row++) {
            T* x = scores + row * U;
            int64_t to = row % L + offset + 1, from = to - window < 0 ? 0 : to - window;
            float top, scale = 1.0f / exponentials(x + from, to - from, wide.data(), &top);
            std::memset(x, 0, from * sizeof(T));
            for (int64_t j = from; j < to; j++) store(x + j, wide[j - from] * scale);
            std::memset(x + to, 0, (U - to) * sizeof(T));
        }
    }
}

// In place over grad: weights * (grad - sum(weights * grad))
template <class T>
void softmax_backward(const T* weights, T* grad, int64_t batch, int64_t L, int64_t U, int64_t offset) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < batch * L; row++) {
        const T* w = weights + row * U;
        T* g = grad + row * U;
        int64_t to = row % L + offset + 1;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < to; j++) dot += load(w[j]) * load(g[j]);
#pragma omp simd
        for (int64_t j = 0; j < to; j++) store(g + j, load(w[j]) * (load(g[j]) - dot));
        std::memset(g + to, 0, (U - to) * sizeof(T));
    }
}

// In place: logits become d logp(label) / d logits = onehot(label) - softmax; logp and first choice beside them
template <class T>
void label_softmax(T* logits, const int64_t* labels, float* logp, bool* correct, int64_t N, int64_t V) {
#pragma omp parallel
    {
        std::vector<float> wide(V + LANES);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N; i++) {
            T* x = logits + i * V;
            float top, label = load(x[labels[i]]), sum = exponentials(x, V, wide.data(), &top);
            logp[i] = label - top - std::log(sum);
            correct[i] = label == top;
            float scale = -1.0f / sum;
            for (int64_t j = 0; j < V; j++) store(x + j, wide[j] * scale);
            store(x + labels[i], 1.0f + wide[labels[i]] * scale);
        }
    }
}

}  // namespace

#define EXPORT(T, name)                                                                                                \
    extern "C" void norm_##name(const T* x, const T* weight, float eps, T* out, float* rstd, int64_t N, int64_t D) {   \
        norm(x, weight, eps, out, rstd, N, D);                                                                         \
    }                                                                                                                  \
    extern "C" void norm_backward_##name(const T* grad, const T* x, const T* weight, const float* rstd,                \
                                         const T* residual, T* dx, float* weight_grads, int64_t blocks, int64_t N,     \
                                         int64_t D) {                                                                  \
        norm_backward(grad, x, weight, rstd, residual, dx, weight_grads, blocks, N, D);                                \
    }                                                                                                                  \
    extern "C" void swiglu_##name(const T* pair, T* out, int64_t N, int64_t I) { swiglu(pair, out, N, I); }            \
    extern "C" void swiglu_backward_##name(const T* grad, const T* pair, T* dpair, T* out, int64_t N, int64_t I) {     \
        swiglu_backward(grad, pair, dpair, out, N, I);                                                                 \
    }                                                                                                                  \
    extern "C" void heads_##name(T* tokens, T* documents, const int64_t* ends, const int64_t* room_ends,               \
                                 int64_t count, int64_t H, int64_t D, int64_t stride, const T* cos, const T* sin,      \
                                 float direction, float scale, int to_documents) {                                     \
        heads(tokens, documents, ends, room_ends, count, H, D, stride, cos, sin, direction, scale, to_documents);      \
    }                                                                                                                  \
    extern "C" void softmax_##name(T* scores, int64_t batch, int64_t L, int64_t U, int64_t offset, int64_t window) {   \
        softmax(scores, batch, L, U, offset, window);                                                                  \
    }                                                                                                                  \
    extern "C" void softmax_backward_##name(const T* weights, T* grad, int64_t batch, int64_t L, int64_t U,            \
                                            int64_t offset) {                                                          \
        softmax_backward(weights, grad, batch, L, U, offset);                                                          \
    }                                                                                                                  \
    extern "C" void label_softmax_##name(T* logits, const int64_t* labels, float* logp, bool* correct, int64_t N,      \
                                         int64_t V) {                                                                  \
        label_softmax(logits, labels, logp, correct, N, V);                                                            \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
