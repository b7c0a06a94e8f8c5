// Vectors of values, by the extension that GCC and clang share, and blocks of sums that stay in registers:
// the products of small matrices of which PFA is made. Sums are in an order that follows from the sizes and
// the vector's width alone.
#pragma once
#include <cstdint>
#include <type_traits>

#include "core/host_device.h"
#include "cpu/isa.h"

namespace attsnn {

// A row's place, from row to row of a block. In a register of its own: a compiler would work out the
// addresses of all rows of a block at once, which are more than there are registers.
template <class T>
struct RowWalk {
  T* at;
  int64_t distance;
  ATTSNN_INLINE void next() {
    at += distance;
    asm("" : "+r"(at));
  }
};

// Rows in memory, at one distance from each other.
template <class T>
struct RowsApart {
  T* first;
  int64_t distance;
  ATTSNN_INLINE T* operator()(int64_t k) const { return first + k * distance; }
  ATTSNN_INLINE RowWalk<T> walk(int64_t row, int64_t column) const {
    return {(*this)(row) + column, distance};
  }
};

template <class Real, int kBytes>
struct VectorOf {
  typedef Real type __attribute__((vector_size(kBytes)));
  typedef Real unaligned __attribute__((vector_size(kBytes), aligned(sizeof(Real)), may_alias));
  static constexpr int kWidth = kBytes / sizeof(Real);
};
template <class Real, int kBytes>
using Vector = typename VectorOf<Real, kBytes>::type;

template <class V, class Real>
ATTSNN_INLINE void load_vector(const Real* from, V& to) {
  to = *reinterpret_cast<const typename VectorOf<Real, sizeof(V)>::unaligned*>(from);
}
template <class V, class Real>
ATTSNN_INLINE void store_vector(const V& from, Real* to) {
  *reinterpret_cast<typename VectorOf<Real, sizeof(V)>::unaligned*>(to) = from;
}
// Past the cache, a whole aligned vector: what is written is larger than the cache, and would push out what
// is read again. `stored_past_the_cache` makes it visible to other threads.
template <class V, class Real>
ATTSNN_INLINE void store_past_the_cache(const V& from, Real* to) {
#ifdef ATTSNN_ISA_DISPATCH
  if constexpr (sizeof(V) == 16)
    asm volatile("movntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "x"(from));
  else
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<V*>(to)) : "v"(from));
#else
  store_vector(from, to);
#endif
}
inline void stored_past_the_cache() {
#ifdef ATTSNN_ISA_DISPATCH
  asm volatile("sfence" ::: "memory");
#endif
}

// The sum of a vector's values, in halves.
template <class Real, int kBytes>
ATTSNN_INLINE Real sum_of(const Vector<Real, kBytes>& vector) {
  constexpr int kWidth = VectorOf<Real, kBytes>::kWidth;
  if constexpr (kWidth == 2) {
    return vector[0] + vector[1];
  } else {
    Vector<Real, kBytes / 2> halves[2];
    __builtin_memcpy(halves, &vector, kBytes);
    const Vector<Real, kBytes / 2> sum = halves[0] + halves[1];
    return sum_of<Real, kBytes / 2>(sum);
  }
}

// Lengths that rows are padded to, with zeros: whole vectors of every instruction set.
template <class Real>
constexpr int64_t padded(int64_t size) {
  constexpr int64_t kWidth = 64 / sizeof(Real);
  return (size + kWidth - 1) / kWidth * kWidth;
}

// Rows whose sums stay in registers together, and vectors of each.
template <int kBytes>
inline constexpr int kSumRows = kBytes == 64 ? 8 : 4;
inline constexpr int kSumVectors = 3;

// kRows x kVectors vectors of sums. The last vector starts `last` values behind the first, so that it ends
// where a row does: values that two vectors share are computed twice.
template <int kBytes, class Real, int kRows, int kVectors>
struct SumBlock {
  using V = Vector<Real, kBytes>;
  static constexpr int kWidth = VectorOf<Real, kBytes>::kWidth;
  V sums[kRows][kVectors] = {};

  static ATTSNN_INLINE int64_t at(int v, int64_t last) { return v == kVectors - 1 ? last : v * kWidth; }

  // sums[m][v] += weights[m * by_row + k * by_term] * rows(k)[v], k < terms.
  template <class Rows>
  ATTSNN_INLINE void add(int64_t terms, const Real* weights, int64_t by_row, int64_t by_term,
                         const Rows& rows, int64_t last) {
    for (int64_t k = 0; k < terms; ++k) {
      V values[kVectors];
      const Real* row = rows(k);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) load_vector(row + at(v, last), values[v]);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const V weight = weights[m * by_row + k * by_term] - V{};  // in every place
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[m][v] += weight * values[v];
      }
    }
  }

  // sums[m][v] += the products of row m of `rows` and row v of `others`, vector by vector.
  ATTSNN_INLINE void add_products(int64_t columns, const Real* rows, int64_t by_row, const Real* others,
                                  int64_t by_other) {
    for (int64_t j = 0; j < columns; j += kWidth) {
      V values[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) load_vector(others + v * by_other + j, values[v]);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        V row;
        load_vector(rows + m * by_row + j, row);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[m][v] += row * values[v];
      }
    }
  }

  // f(m, v) for every vector of sums; behind those of a row, the walks go on.
  template <class F, class... Walks>
  static ATTSNN_INLINE void each(const F& f, Walks&... walks) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) f(m, v);
      (walks.next(), ...);
    }
  }
  ATTSNN_INLINE void finish(Real* to, int64_t by_row, int64_t last) {
    RowWalk<Real> row{to, by_row};
    each([&](int m, int v) ATTSNN_INLINED { store_vector(sums[m][v], row.at + at(v, last)); }, row);
  }
  // Of whole vectors, which share no values.
  ATTSNN_INLINE void add_to(Real* to, int64_t by_row, int64_t last) {
    RowWalk<Real> row{to, by_row};
    each(
        [&](int m, int v) ATTSNN_INLINED {
          V before;
          load_vector(row.at + at(v, last), before);
          store_vector(before + sums[m][v], row.at + at(v, last));
        },
        row);
  }
};

template <int kValue>
using Number = std::integral_constant<int, kValue>;

// f(Number<vectors>, first column, `last` of a SumBlock), for as many columns as a vector has, or more.
template <int kBytes, class Real, class F>
ATTSNN_INLINE void over_columns(int64_t columns, const F& f) {
  constexpr int64_t kWidth = VectorOf<Real, kBytes>::kWidth;
  int64_t j = 0;
  for (; j + 3 * kWidth <= columns; j += 3 * kWidth) f(Number<3>{}, j, 2 * kWidth);
  const int64_t left = columns - j;
  if (left > 2 * kWidth)
    f(Number<3>{}, j, left - kWidth);
  else if (left > kWidth)
    f(Number<2>{}, j, left - kWidth);
  else if (left > 0)
    f(Number<1>{}, columns - kWidth, int64_t(0));
}

// f(Number<rows>, first row).
template <int kBytes, class F>
ATTSNN_INLINE void over_rows(int64_t rows, const F& f) {
  constexpr int kRows = kSumRows<kBytes>;
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) f(Number<kRows>{}, i);
  if (i + kRows / 2 <= rows) f(Number<kRows / 2>{}, i), i += kRows / 2;
  for (; i < rows; ++i) f(Number<1>{}, i);
}

// to[m][j] = (to[m][j] +) sum over k of weights[m * by_row + k * by_term] * others[k][j]; whole vectors of
// columns.
template <int kBytes, class Real>
ATTSNN_INLINE void product(bool added, int64_t rows, int64_t columns, int64_t terms, const Real* weights,
                           int64_t by_row, int64_t by_term, RowsApart<const Real> others, Real* to,
                           int64_t distance) {
  over_rows<kBytes>(rows, [&](auto m, int64_t i) ATTSNN_INLINED {
    over_columns<kBytes, Real>(columns, [&](auto v, int64_t j, int64_t last) ATTSNN_INLINED {
      SumBlock<kBytes, Real, m.value, v.value> block;
      block.add(terms, weights + i * by_row, by_row, by_term,
                RowsApart<const Real>{others.first + j, others.distance}, last);
      added ? block.add_to(to + i * distance + j, distance, last)
            : block.finish(to + i * distance + j, distance, last);
    });
  });
}

// finish(m, v, sum over j of rows[m][j] * others[v][j]); whole vectors of columns, padded with zeros.
template <int kBytes, class Real, class F>
ATTSNN_INLINE void products_of_rows(int64_t count, int64_t others_count, int64_t columns,
                                    RowsApart<const Real> rows, RowsApart<const Real> others,
                                    const F& finish) {
  over_rows<kBytes>(count, [&](auto m, int64_t i) ATTSNN_INLINED {
    const auto of = [&](auto v, int64_t o) ATTSNN_INLINED {
      SumBlock<kBytes, Real, m.value, v.value> block;
      block.add_products(columns, rows(i), rows.distance, others(o), others.distance);
      block.each([&](int a, int b)
                     ATTSNN_INLINED { finish(i + a, o + b, sum_of<Real, kBytes>(block.sums[a][b])); });
    };
    int64_t o = 0;
    for (; o + kSumVectors <= others_count; o += kSumVectors) of(Number<kSumVectors>{}, o);
    for (; o < others_count; ++o) of(Number<1>{}, o);
  });
}

}  // namespace attsnn
