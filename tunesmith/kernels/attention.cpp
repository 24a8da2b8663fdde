// Causal attention of packed documents, forward and backward; attention.py says what a document sees.
//
// Documents are short (a few hundred tokens), so that as batched matrix products attention is a crowd of small calls
// that each read and write scores in memory. Here one task is one head of one document. It takes a few queries at a
// time through scores, softmax and values while all of it lies in the nearest cache, and computes nothing above the
// diagonal. Nothing is kept but the logarithm of each query's sum: backward makes the scores again (Dao et al. 2022).
//
// Everything is fp32 once it is read. All products go through `tile`, in the compiler's own vector types. A task writes
// where no other does, and sums over tasks are made in a fixed order afterwards, so that results do not depend on timing.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t BLOCK = 64;  // queries whose scores backward keeps at a time

// Keys that a document sees: `n` from `base` on in the packed keys, the first at position `position` of the document,
// its scores from column `column` on. In its own part a query sees the keys up to itself.
struct Part {
    int64_t base, n, position, column;
    bool own;
};

struct Range {
    int64_t from, to;
};

template <class T>
struct Problem {
    const T *q, *k, *v;  // token order, heads side by side
    int64_t q_stride, k_stride, v_stride;
    const T *cos, *sin;        // of the rotary embedding, a row of D for each token; or null
    const T *past_k, *past_v;  // G x past x D
    int64_t past;
    const int64_t* ends;  // of each document
    int64_t count, shared, H, G, D, window;
    float scale;
    std::vector<int64_t> bases;            // where each document's keys begin in the packed keys, and their number
    std::vector<std::vector<Part>> parts;  // what each document sees, its own keys last

    int64_t N() const { return ends[count - 1]; }
    int64_t depth() const { return padded(D); }
    int64_t start(int64_t i) const { return i ? ends[i - 1] : 0; }
    int64_t length(int64_t i) const { return ends[i] - start(i); }
    int64_t columns(int64_t i) const { return parts[i].back().column + padded(parts[i].back().n); }

    void prepare() {
        bases.push_back(padded(past));
        for (int64_t i = 0; i < count; i++) {
            bases.push_back(bases[i] + padded(length(i)));
            parts.emplace_back();
            int64_t position = 0, column = 0;
            auto append = [&](int64_t base, int64_t n, bool own) {
                parts[i].push_back({base, n, position, column, own});
                position += n, column += padded(n);
            };
            if (past) append(0, past, false);
            if (shared && i) append(bases[0], length(0), false);
            append(bases[i], length(i), true);
        }
    }

    // The keys of a part that the query `row` of the document sees
    Range seen(const Part& part, const Part& own, int64_t row) const {
        const int64_t to = part.own ? std::min(row + 1, part.n) : part.n;
        const int64_t from = own.position + row - part.position - window + 1;
        return {std::min(std::max<int64_t>(from, 0), to), to};
    }

    // The whole tiles of a part that any of the queries [row, row + ROWS) sees
    Range tiles(const Part& part, const Part& own, int64_t row) const {
        return {seen(part, own, row).from / WIDTH * WIDTH, padded(seen(part, own, row + ROWS - 1).to)};
    }

    // One head of a token, turned by its angle and scaled
    void read(const T* from, int64_t token, bool turn, float scale, float* to) const {
        if (!turn || !cos) {
#pragma omp simd
            for (int64_t j = 0; j < D; j++) to[j] = load(from[j]) * scale;
            return;
        }
        const T *c = cos + token * D, *s = sin + token * D;
#pragma omp simd
        for (int64_t j = 0; j < D / 2; j++) {
            const float a = load(from[j]), b = load(from[j + D / 2]);
            to[j] = (a * load(c[j]) - b * load(s[j])) * scale;
            to[j + D / 2] = (b * load(c[j + D / 2]) + a * load(s[j + D / 2])) * scale;
        }
    }

    // The gradient of what `read` reads from that of what it makes
    void write_gradient(const float* from, int64_t token, bool turn, float scale, T* to) const {
        if (!turn || !cos) {
#pragma omp simd
            for (int64_t j = 0; j < D; j++) store(to + j, from[j] * scale);
            return;
        }
        const T *c = cos + token * D, *s = sin + token * D;
#pragma omp simd
        for (int64_t j = 0; j < D / 2; j++) {
            const float a = from[j], b = from[j + D / 2];
            store(to + j, (a * load(c[j]) + b * load(s[j + D / 2])) * scale);
            store(to + j + D / 2, (b * load(c[j + D / 2]) - a * load(s[j])) * scale);
        }
    }
};

// The keys (or values) of all G heads in fp32: as rows of `depth`, or as tiles of WIDTH columns that products with the
// transposed matrix read, or both. Each document begins a tile of its own; what it does not fill is zero.
template <class T>
struct Keys {
    int64_t size;
    Floats rows, tiles;

    Keys(const Problem<T>& p, const T* x, int64_t stride, const T* past, bool turn, bool as_rows, bool as_tiles)
        : size(p.bases.back()) {
        if (as_rows) rows = floats(p.G * size * p.depth(), true);
        if (as_tiles) tiles = floats(p.G * size * p.D, true);
        on_all_threads(p.G * (p.count + 1), [&](int64_t task) {
            const int64_t g = task % p.G, i = task / p.G - 1;  // -1: the keys from outside
            const int64_t base = i < 0 ? 0 : p.bases[i], n = i < 0 ? p.past : p.length(i);
            const Floats own = floats(p.depth());
            for (int64_t j = 0; j < n; j++) {
                const int64_t token = i < 0 ? 0 : p.start(i) + j;
                const T* from = i < 0 ? past + (g * n + j) * p.D : x + token * stride + g * p.D;
                float* row = as_rows ? rows.get() + (g * size + base + j) * p.depth() : own.get();
                p.read(from, token, turn && i >= 0, 1.0f, row);
                float* column = tiles.get() + (g * size + base + j / WIDTH * WIDTH) * p.D + j % WIDTH;
                for (int64_t d = 0; as_tiles && d < p.D; d++) column[d * WIDTH] = row[d];
            }
        });
    }

    const float* tile_of(const Problem<T>& p, int64_t g, int64_t at) const { return tiles.get() + (g * size + at) * p.D; }
    const float* row_of(const Problem<T>& p, int64_t g, int64_t at) const {
        return rows.get() + (g * size + at) * p.depth();
    }
};

// ROWS x U products of rows of `left` with the keys that the queries from `row` on may see, at their columns of `out`
template <class T>
void products(const Problem<T>& p, const Keys<T>& keys, int64_t g, const std::vector<Part>& parts, int64_t row,
              const float* left, float* out, int64_t U) {
    for (const Part& part : parts) {
        const Range range = p.tiles(part, parts.back(), row);
        for (int64_t at = range.from; at < range.to; at += WIDTH)
            tile(left, p.depth(), 1, keys.tile_of(p, g, part.base + at), WIDTH, p.D, out + part.column + at, U, false);
    }
}

// sums (ROWS x depth) = weights (ROWS x U) times the rows of the keys that the queries from `row` on may see
template <class T>
void weighted(const Problem<T>& p, const Keys<T>& keys, int64_t g, const std::vector<Part>& parts, int64_t row,
              const float* weights, int64_t U, float* sums) {
    for (int64_t d = 0; d < p.depth(); d += WIDTH) {
        bool add = false;
        for (const Part& part : parts) {
            const Range range = p.tiles(part, parts.back(), row);
            if (range.from >= range.to) continue;
            tile(weights + part.column + range.from, U, 1, keys.row_of(p, g, part.base + range.from) + d, p.depth(),
                 range.to - range.from, sums + d, p.depth(), add);
            add = true;
        }
    }
}

// Columns of a row that lie in its tiles and are not seen
void hide(float* x, Range tiles, Range seen, float value) {
    std::fill(x + tiles.from, x + seen.from, value);
    std::fill(x + seen.to, x + tiles.to, value);
}

// x[j] = exp(x[j] - less) where it is seen, 0 elsewhere; returns the sum
float exponentials(float* x, Range tiles, Range seen, float less) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = tiles.from; j < tiles.to; j++) sum += x[j] = fast_exp(x[j] - less);
    hide(x, tiles, seen, 0.0f);
    return sum;
}

template <class T>
void attend(const Problem<T>& p, T* o, float* lse) {
    const Keys<T> keys(p, p.k, p.k_stride, p.past_k, true, false, true);
    const Keys<T> values(p, p.v, p.v_stride, p.past_v, false, true, false);
    const int64_t depth = p.depth();
    on_all_threads(p.count * p.H, [&](int64_t task) {
        const int64_t i = task / p.H, h = task % p.H, g = h * p.G / p.H, L = p.length(i), U = p.columns(i);
        const std::vector<Part>& parts = p.parts[i];
        const Floats q = floats(ROWS * depth, true), scores = floats(ROWS * U), sums = floats(ROWS * depth);
        for (int64_t row = 0; row < L; row += ROWS) {
            const int64_t rows = std::min(ROWS, L - row), token = p.start(i) + row;
            for (int64_t r = 0; r < rows; r++)
                p.read(p.q + (token + r) * p.q_stride + h * p.D, token + r, true, p.scale, q.get() + r * depth);
            products(p, keys, g, parts, row, q.get(), scores.get(), U);
            float scales[ROWS];
            for (int64_t r = 0; r < ROWS; r++) {
                float top = -INFINITY, sum = 0;
                for (const Part& part : parts) {
                    float* x = scores.get() + r * U + part.column;
                    const Range tiles = p.tiles(part, parts.back(), row);
                    hide(x, tiles, p.seen(part, parts.back(), row + r), -INFINITY);
#pragma omp simd reduction(max : top)
                    for (int64_t j = tiles.from; j < tiles.to; j++) top = x[j] > top ? x[j] : top;
                }
                for (const Part& part : parts)
                    sum += exponentials(scores.get() + r * U + part.column, p.tiles(part, parts.back(), row),
                                        p.seen(part, parts.back(), row + r), top);
                scales[r] = 1.0f / sum;
                if (r < rows) lse[h * p.N() + token + r] = top + std::log(sum);
            }
            weighted(p, values, g, parts, row, scores.get(), U, sums.get());
            for (int64_t r = 0; r < rows; r++) {
                T* to = o + (token + r) * p.H * p.D + h * p.D;
#pragma omp simd
                for (int64_t j = 0; j < p.D; j++) store(to + j, sums[r * depth + j] * scales[r]);
            }
        }
    });
}

template <class T>
struct Gradients {
    T *q, *k, *v;
    int64_t q_stride, k_stride, v_stride;
    float *past_k, *past_v;  // G x past x D
};

// One head of one document: the gradient of its queries, written; those of what it sees, added to `dk` and `dv` (rows of
// `depth`, in the order of its columns)
template <class T>
void document_backward(const Problem<T>& p, const Keys<T>& keys, const Keys<T>& values, const T* grad, const float* lse,
                       int64_t i, int64_t h, const Gradients<T>& out, float* dk, float* dv) {
    const int64_t g = h * p.G / p.H, L = p.length(i), U = p.columns(i), depth = p.depth(), token = p.start(i);
    const std::vector<Part>& parts = p.parts[i];
    const Part& own = parts.back();
    const Floats q = floats((L + ROWS) * depth, true), d_o = floats((L + ROWS) * depth, true);
    const Floats weights = floats(BLOCK * U), dscores = floats(BLOCK * U), sums = floats(ROWS * depth);
    for (int64_t row = 0; row < L; row++) {
        p.read(p.q + (token + row) * p.q_stride + h * p.D, token + row, true, p.scale, q.get() + row * depth);
        p.read(grad + (token + row) * p.H * p.D + h * p.D, token + row, false, 1.0f, d_o.get() + row * depth);
    }
    for (int64_t block = 0; block < L; block += BLOCK) {
        const int64_t rows = (std::min(BLOCK, L - block) + ROWS - 1) / ROWS * ROWS;
        const auto whole = [&](const Part& part) {  // the tiles that any query of the block sees
            return Range{p.tiles(part, own, block).from, p.tiles(part, own, block + rows - ROWS).to};
        };
        for (int64_t row = block; row < block + rows; row += ROWS) {
            float *w = weights.get() + (row - block) * U, *ds = dscores.get() + (row - block) * U;
            products(p, keys, g, parts, row, q.get() + row * depth, w, U);
            products(p, values, g, parts, row, d_o.get() + row * depth, ds, U);
            for (int64_t r = 0; r < ROWS; r++, w += U, ds += U) {
                const float less = row + r < L ? lse[h * p.N() + token + row + r] : 0.0f;
                float dot = 0;
                for (const Part& part : parts) {
                    const Range tiles = p.tiles(part, own, row), all = whole(part);
                    float *x = w + part.column, *dx = ds + part.column;
                    exponentials(x, tiles, p.seen(part, own, row + r), less);
                    hide(x, all, tiles, 0.0f);
                    hide(dx, all, tiles, 0.0f);
#pragma omp simd reduction(+ : dot)
                    for (int64_t j = tiles.from; j < tiles.to; j++) dot += x[j] * dx[j];
                }
                for (const Part& part : parts) {
                    const Range tiles = p.tiles(part, own, row);
                    float *x = w + part.column, *dx = ds + part.column;
#pragma omp simd
                    for (int64_t j = tiles.from; j < tiles.to; j++) dx[j] = x[j] * (dx[j] - dot);
                }
            }
            weighted(p, keys, g, parts, row, dscores.get() + (row - block) * U, U, sums.get());
            for (int64_t r = row; r < std::min(row + ROWS, L); r++)
                p.write_gradient(sums.get() + (r - row) * depth, token + r, true, p.scale,
                                 out.q + (token + r) * out.q_stride + h * p.D);
        }
        for (const Part& part : parts)
            for (int64_t at = whole(part).from; at < whole(part).to; at += ROWS) {
                const int64_t first = part.own ? std::max<int64_t>(at - block, 0) / ROWS * ROWS : 0;  // that sees it
                for (int64_t d = 0; d < depth; d += WIDTH) {
                    const int64_t from = first * U + part.column + at, to = (part.column + at) * depth + d;
                    const int64_t query = (block + first) * depth + d;
                    tile(dscores.get() + from, 1, U, q.get() + query, depth, rows - first, dk + to, depth, true);
                    tile(weights.get() + from, 1, U, d_o.get() + query, depth, rows - first, dv + to, depth, true);
                }
            }
    }
}

template <class T>
void attend_backward(const Problem<T>& p, const T* grad, const float* lse, const Gradients<T>& out) {
    const Keys<T> keys(p, p.k, p.k_stride, p.past_k, true, true, true);
    const Keys<T> values(p, p.v, p.v_stride, p.past_v, false, false, true);
    // The heads of a group add to the same gradients. One task takes them all, unless that leaves threads without work.
    const int64_t depth = p.depth(), R = p.H / p.G, tasks = p.count * p.G >= 4 * omp_get_max_threads() ? 1 : R;
    std::vector<int64_t> offsets(1, 0);  // of each document's columns, over all its tasks
    for (int64_t i = 0; i < p.count; i++) offsets.push_back(offsets[i] + p.G * tasks * p.columns(i));
    const Floats dk = floats(offsets.back() * depth), dv = floats(offsets.back() * depth);
    on_all_threads(p.count * p.G * tasks, [&](int64_t task) {
        const int64_t i = task / (p.G * tasks), n = task % (p.G * tasks), size = p.columns(i) * depth;
        const int64_t at = offsets[i] * depth + n * size;
        std::fill_n(dk.get() + at, size, 0.0f);
        std::fill_n(dv.get() + at, size, 0.0f);
        for (int64_t h = n * R / tasks; h < (n + 1) * R / tasks; h++)
            document_backward(p, keys, values, grad, lse, i, h, out, dk.get() + at, dv.get() + at);
    });
    // adds what the tasks of group g found, in one document, for the key at `column`
    const auto add = [&](const Floats& from, int64_t i, int64_t g, int64_t column, float* sum) {
        for (int64_t n = g * tasks; n < (g + 1) * tasks; n++) {
            const float* x = from.get() + (offsets[i] + n * p.columns(i) + column) * depth;
#pragma omp simd
            for (int64_t j = 0; j < p.D; j++) sum[j] += x[j];
        }
    };
    // all that was found for the key of a token (before token 0 for the keys from outside)
    const auto gather = [&](const Floats& from, int64_t token, int64_t i, int64_t g, float* sum) {
        std::fill_n(sum, p.D, 0.0f);
        for (int64_t j = 0; token < 0 && j < p.count; j++) add(from, j, g, p.past + token, sum);
        if (token < 0) return;
        const int64_t own = token - p.start(i);
        add(from, i, g, p.parts[i].back().column + own, sum);
        for (int64_t j = 1; p.shared && i == 0 && j < p.count; j++) add(from, j, g, p.parts[0].back().column + own, sum);
    };
    on_all_threads(p.G * (p.count + 1), [&](int64_t task) {
        const int64_t g = task % p.G, i = task / p.G - 1;
        const Floats sum = floats(p.D);
        for (int64_t token = i < 0 ? -p.past : p.start(i); token < (i < 0 ? 0 : p.ends[i]); token++)
            for (const bool of_keys : {true, false}) {
                gather(of_keys ? dk : dv, token, i, g, sum.get());
                if (i < 0)
                    std::copy_n(sum.get(), p.D, (of_keys ? out.past_k : out.past_v) + ((g + 1) * p.past + token) * p.D);
                else
                    p.write_gradient(sum.get(), token, of_keys, 1.0f,
                                     (of_keys ? out.k + token * out.k_stride : out.v + token * out.v_stride) + g * p.D);
            }
    });
}

}  // namespace

#define TAKES(T)                                                                                                       \
    const T *q, const T *k, const T *v, int64_t q_stride, int64_t k_stride, int64_t v_stride, const T *cos,            \
        const T *sin, const T *past_k, const T *past_v, int64_t past, const int64_t *ends, int64_t count,              \
        int64_t shared, int64_t H, int64_t G, int64_t D, int64_t window, float scale

#define PROBLEM(T)                                                                                                     \
    Problem<T> p{q,    k,     v,      q_stride, k_stride, v_stride, cos, sin,    past_k, past_v,                       \
                 past, ends,  count,  shared,   H,        G,        D,   window, scale};                               \
    p.prepare();

#define EXPORT(T, name)                                                                                                \
    extern "C" int attention_##name(TAKES(T), T* o, float* lse) {                                                      \
        return status_of([&] { PROBLEM(T) attend(p, o, lse); });                                                       \
    }                                                                                                                  \
    extern "C" int attention_backward_##name(TAKES(T), const T* grad, const float* lse, T* dq, T* dk, T* dv,           \
                                             int64_t dq_stride, int64_t dk_stride, int64_t dv_stride,                  \
                                             float* past_dk, float* past_dv) {                                         \
        const Gradients<T> out{dq, dk, dv, dq_stride, dk_stride, dv_stride, past_dk, past_dv};                         \
        return status_of([&] { PROBLEM(T) attend_backward(p, grad, lse, out); });                                      \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
