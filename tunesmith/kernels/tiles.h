// Products of small fp32 matrices, a tile of the result at a time, in the compiler's own vector types; the memory that
// they work in, and the threads that share them out.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "numbers.h"

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int64_t LANES = 8, ROWS = 4;
#else
constexpr int64_t LANES = 4, ROWS = 8;
#endif
constexpr int64_t WIDTH = 2 * LANES;  // columns

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

inline int64_t padded(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Floats = std::unique_ptr<float[], Free>;

inline Floats floats(int64_t n, bool zero = false) {
    const size_t bytes = (std::max<int64_t>(n, 1) * sizeof(float) + 63) / 64 * 64;
    float* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!memory) throw std::bad_alloc();
    if (zero) std::memset(memory, 0, bytes);
    return Floats(memory);
}

// Does `work(task)` for each task, on all threads; throws where memory did not suffice for one of them.
template <class Work>
void on_all_threads(int64_t tasks, const Work& work) {
    std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < tasks; task++)
        if (status_of([&] { work(task); })) failed = true;
    if (failed) throw std::bad_alloc();
}

// C (ROWS x WIDTH) = or += A (ROWS x K) B (K x WIDTH); A's rows are `down` apart, its columns `across`
inline void tile(const float* a, int64_t down, int64_t across, const float* b, int64_t b_stride, int64_t K, float* c,
                 int64_t c_stride, bool add) {
    Lanes sums[ROWS][2];
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t j = 0; j < 2; j++) sums[i][j] = add ? *(const Lanes*)(c + i * c_stride + j * LANES) : Lanes{};
    for (int64_t k = 0; k < K; k++) {
        const Lanes left = *(const Lanes*)(b + k * b_stride), right = *(const Lanes*)(b + k * b_stride + LANES);
        for (int64_t i = 0; i < ROWS; i++) {
            const float x = a[i * down + k * across];
            sums[i][0] += x * left;
            sums[i][1] += x * right;
        }
    }
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t j = 0; j < 2; j++) *(Lanes*)(c + i * c_stride + j * LANES) = sums[i][j];
}
