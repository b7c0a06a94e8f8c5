// PFA's passes over x, for one sample: the means, the map composed and applied, the gradient of x. Eight rows
// at a time: a register holds each of their sums, and a byte their bits.
#pragma once
#include <cstring>

#include "core/pfa_call.h"
#include "cpu/memory.h"
#include "cpu/over_tasks.h"
#include "cpu/vectors.h"

namespace attsnn {

inline constexpr int64_t kStaged = 768;  // columns of rows that are converted, or widened to a vector
inline constexpr int64_t kPastTheCache = 4 << 20;  // bytes of a result that no second-level cache holds

// A sample's factors as the loops read them: R values beside every row and step, `ranks` apart, and R rows of
// columns, `width` apart; all padded with zeros.
template <class Real>
struct Factors {
  int64_t rank, ranks, width;
  const Real *row, *step, *column;  // [I, R], [T, R] times scale, [R, J]
};

// A loop over the width, for rows may be a few values long, and a call to copy them takes longer.
template <class Real>
ATTSNN_INLINE void pad_rows(int64_t rows, int64_t columns, const Real* __restrict from, int64_t width,
                            Real* __restrict to) {
  for (int64_t i = 0; i < rows; ++i)
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) to[i * width + j] = j < columns ? from[i * columns + j] : Real(0);
}
// [rows, columns] -> [columns, rows].
template <class Real>
ATTSNN_INLINE void pad_transposed(int64_t rows, int64_t columns, const Real* from, int64_t distance,
                                  int64_t width, Real* to) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[j * width + i] = from[i * distance + j];
    std::fill_n(to + j * width + rows, width - rows, Real(0));
  }
}

// What the thread's loops over a sample read, in its scratch memory.
template <class Real>
Factors<Real> factors_of(const PfaShape& shape, Real scale, const PfaSmall<const Real>& small, int64_t n) {
  const int64_t rank = shape.rank, rows = shape.rows(), columns = shape.columns(), steps = shape.maps.steps;
  const int64_t pixels = shape.maps.pixels(), channels = shape.maps.channels;
  const Factors<Real> sizes{rank, padded<Real>(rank), padded<Real>(columns), nullptr, nullptr, nullptr};
  Real* row = scratch<Real, 0>(rows * sizes.ranks);
  Real* step = scratch<Real, 1>(steps * sizes.ranks);
  Real* column = scratch<Real, 2>(rank * sizes.width);
  const Real *spatial = small.spatial + n * rank * pixels, *channel = small.channel + n * channels * rank;
  if (shape.maps.channels_last) {
    pad_transposed(rank, pixels, spatial, pixels, sizes.ranks, row);
    pad_transposed(channels, rank, channel, rank, sizes.width, column);
  } else {
    with_isa<pad_rows<Real>>(channels, rank, channel, sizes.ranks, row);
    with_isa<pad_rows<Real>>(rank, pixels, spatial, sizes.width, column);
  }
  with_isa<pad_rows<Real>>(steps, rank, small.temporal + n * steps * rank, sizes.ranks, step);
  for (int64_t i = 0; i < steps * sizes.ranks; ++i) step[i] *= scale;
  return {rank, sizes.ranks, sizes.width, row, step, column};
}

// Where the rows of a group are: as a rule `together`, eight rows of one step.
struct RowGroup {
  int count;
  bool together;
  int64_t step, row, rows;  // of the first one; rows of a step

  ATTSNN_INLINE RowGroup(const PfaShape& shape, int64_t group) : rows(shape.rows()) {
    const int64_t first = group * kRowsPerByte;
    count = int(std::min<int64_t>(kRowsPerByte, shape.maps.steps * rows - first));
    step = first / rows, row = first - step * rows;
    together = count == kRowsPerByte && row + kRowsPerByte <= rows;
  }
  ATTSNN_INLINE int64_t t(int m) const { return together ? step : step + (row + m) / rows; }
  ATTSNN_INLINE int64_t i(int m) const { return together ? row + m : (row + m) % rows; }
  template <class T>
  ATTSNN_INLINE void places(const Places<T>& from, int64_t n, int64_t columns, T** to) const {
    for (int m = 0; m < count; ++m) to[m] = from.at(t(m), n) + i(m) * columns;
  }
  template <class T>
  ATTSNN_INLINE RowsApart<T> apart(const Places<T>& from, int64_t n, int64_t columns) const {
    return {from.at(step, n) + row * columns, columns};
  }

  // Their factors of the map, [rows, ranks].
  template <int kBytes, class Real>
  ATTSNN_INLINE void weigh_by(const Factors<Real>& factors, Real* __restrict weights) const {
    if (together) {
      for (int64_t r = 0; r < factors.ranks; r += VectorOf<Real, kBytes>::kWidth) {
        Vector<Real, kBytes> of_step, of_row;
        load_vector(factors.step + step * factors.ranks + r, of_step);
#pragma GCC unroll 8
        for (int m = 0; m < kRowsPerByte; ++m) {
          load_vector(factors.row + (row + m) * factors.ranks + r, of_row);
          store_vector(of_step * of_row, weights + m * factors.ranks + r);
        }
      }
      return;
    }
    for (int m = 0; m < count; ++m) {
      const Real* __restrict of_step = factors.step + t(m) * factors.ranks;
      const Real* __restrict of_row = factors.row + i(m) * factors.ranks;
#pragma GCC ivdep
      for (int64_t r = 0; r < factors.ranks; ++r) weights[m * factors.ranks + r] = of_step[r] * of_row[r];
    }
  }
};

// How a large result goes past the cache, in whole lines: row by row, or where a row is none, eight rows of
// one step, which lie side by side, out of a buffer; or not.
enum class Past { kNever, kRows, kGroups };

template <class T>
Past past_the_cache(const PfaShape& shape, const Places<T>& to) {
  const auto lines = [](int64_t values) { return values * int64_t(sizeof(T)) % 64 == 0; };
  const int64_t columns = shape.columns();
  if (shape.maps.planes() * shape.maps.pixels() * int64_t(sizeof(T)) < kPastTheCache ||
      reinterpret_cast<uintptr_t>(to.data) % 64 != 0 || !lines(to.step) || !lines(to.sample))
    return Past::kNever;
  if (lines(columns)) return Past::kRows;
  const bool groups = shape.rows() % kRowsPerByte == 0 && lines(kRowsPerByte * columns) && columns <= kStaged;
  return groups ? Past::kGroups : Past::kNever;
}

// A group's rows out of their buffer.
template <int kBytes, class Real>
ATTSNN_INLINE void copy_past_the_cache(int64_t values, const Real* from, Real* to) {
  for (int64_t k = 0; k < values; k += VectorOf<Real, kBytes>::kWidth) {
    Vector<Real, kBytes> value;
    load_vector(from + k, value);
    store_past_the_cache(value, to + k);
  }
}

// Rows of memory as the loops want them: in place where they have the state's type and are as long as a
// vector, else a stretch of them in a buffer [8, kStaged], widened with zeros.
template <int kBytes, class Io, class Real>
struct Staging {
  static ATTSNN_INLINE bool needed(int64_t columns) {
    return !std::is_same_v<Io, Real> || columns < VectorOf<Real, kBytes>::kWidth;
  }
  template <class Any>
  static ATTSNN_INLINE void in(int64_t count, const Any* from, Real* to) {
    convert_row(count, from, to);
    std::fill_n(to + count, padded<Real>(count) - count, Real(0));
  }
  // f(first column, columns) for stretches of a row.
  template <class F>
  static ATTSNN_INLINE void stretches(int64_t columns, const F& f) {
    for (int64_t first = 0; first < columns; first += kStaged) f(first, std::min(kStaged, columns - first));
  }
};

// ---- the means

// Adds rows to the sums by column, and sums each.
template <int kBytes, int kRows, class Real>
ATTSNN_INLINE void sum_rows(int64_t columns, const Real* const* rows, Real* by_column, Real* by_row) {
  using V = Vector<Real, kBytes>;
  constexpr int64_t kWidth = VectorOf<Real, kBytes>::kWidth;
  V sums[kRows] = {};
  const auto add = [&](int64_t j, const V* keep) ATTSNN_INLINED {
    V values[kRows], column;
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      load_vector(rows[m] + j, values[m]);
      if (keep != nullptr) values[m] = *keep != V{} ? values[m] : V{};
      sums[m] += values[m];
    }
#pragma GCC unroll 8
    for (int half = kRows / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int m = 0; m < half; ++m) values[m] += values[m + half];
    load_vector(by_column + j, column);
    store_vector(column + values[0], by_column + j);
  };
  int64_t j = 0;
  for (; j + kWidth <= columns; j += kWidth) add(j, nullptr);
  if (j < columns) {  // a vector that ends with the row, but for what was added before
    V keep;
    for (int64_t l = 0; l < kWidth; ++l) keep[l] = Real(columns - kWidth + l >= j);
    add(columns - kWidth, &keep);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) by_row[m] += sum_of<Real, kBytes>(sums[m]);
}

// A sample at one step: the means of its rows and of its columns.
template <class Io, class Real>
struct MeansLoops {
  template <int kBytes>
  static ATTSNN_INLINE void run(const Io* x, int64_t rows, int64_t columns, Real* by_column, Real* by_row,
                                Real* staged) {
    std::fill_n(by_column, columns, Real(0));
    std::fill_n(by_row, rows, Real(0));
    const auto with_rows = [&](auto count, int64_t i) ATTSNN_INLINED {
      constexpr int kRows = count.value;
      const Real* at[kRows];
      if constexpr (std::is_same_v<Io, Real>)
        if (!Staging<kBytes, Io, Real>::needed(columns)) {
          for (int m = 0; m < kRows; ++m) at[m] = x + (i + m) * columns;
          return sum_rows<kBytes, kRows>(columns, at, by_column, by_row + i);
        }
      Staging<kBytes, Io, Real>::stretches(columns, [&](int64_t first, int64_t length) ATTSNN_INLINED {
        for (int m = 0; m < kRows; ++m) {
          Staging<kBytes, Io, Real>::in(length, x + (i + m) * columns + first, staged + m * kStaged);
          at[m] = staged + m * kStaged;
        }
        Real* sums = staged + kRowsPerByte * kStaged;  // by_column's, padded
        std::fill_n(sums, padded<Real>(length), Real(0));
        sum_rows<kBytes, kRows>(padded<Real>(length), at, sums, by_row + i);
        for (int64_t j = 0; j < length; ++j) by_column[first + j] += sums[j];
      });
    };
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8) with_rows(Number<8>{}, i);
    for (; i < rows; ++i) with_rows(Number<1>{}, i);
    for (int64_t j = 0; j < columns; ++j) by_column[j] /= Real(rows);
    for (int64_t k = 0; k < rows; ++k) by_row[k] /= Real(columns);
  }
};

// ---- the map, composed in registers: finish(m, v, its values, the column of the vector) takes them

template <int kBytes, int kRows, class Real, class Finish>
ATTSNN_INLINE void compose(const Factors<Real>& factors, const Real* weights, int64_t first, int64_t columns,
                           const Finish& finish) {
  over_columns<kBytes, Real>(columns, [&](auto vectors, int64_t j, int64_t last) ATTSNN_INLINED {
    SumBlock<kBytes, Real, kRows, vectors.value> block;
    block.add(factors.rank, weights, factors.ranks, 1,
              RowsApart<const Real>{factors.column + first + j, factors.width}, last);
    finish(block, j, last);
  });
}

// A bit for each of a group's rows, whether y is not 0: the ReLU's mask, by which NaN passes.
template <class Real>
ATTSNN_INLINE void pack_bits(int count, int64_t columns, const RowsApart<Real>& y, uint8_t* bits) {
  std::fill_n(bits, columns, uint8_t(0));
  for (int m = 0; m < count; ++m) {
    const Real* row = y(m);
#pragma GCC ivdep
    for (int64_t j = 0; j < columns; ++j) bits[j] |= uint8_t((row[j] != Real(0)) << m);
  }
}

// y of the groups of rows [begin, end) of sample n.
template <class Io, class Real>
struct ApplyLoops {
  template <int kBytes>
  static ATTSNN_INLINE void run(const PfaForward<Io, Real>* call, const Factors<Real>* factors, int64_t n,
                                int64_t begin, int64_t end, Past past, Real* staged) {
    const PfaShape& shape = call->shape;
    const int64_t columns = shape.columns();
    alignas(64) Real weights[kRowsPerByte * kMaxRank];
    for (int64_t g = begin; g < end; ++g) {
      const RowGroup group(shape, g);
      group.weigh_by<kBytes>(*factors, weights);
      uint8_t* bits = call->bits ? call->bits + (n * shape.groups() + g) * columns : nullptr;
      if constexpr (std::is_same_v<Io, Real>)
        if (!Staging<kBytes, Io, Real>::needed(columns) && group.together) {
          const auto x = group.apart(call->x, n, columns);
          const auto y = group.apart(call->y, n, columns);
          const bool staging = past == Past::kGroups;
          const RowsApart<Real> to = staging ? RowsApart<Real>{staged, columns} : y;
          past == Past::kRows
              ? apply<kBytes, true>(call->fusion, *factors, kRowsPerByte, weights, 0, columns, x, to)
              : apply<kBytes, false>(call->fusion, *factors, kRowsPerByte, weights, 0, columns, x, to);
          if (bits) pack_bits(kRowsPerByte, columns, to, bits);
          if (staging) copy_past_the_cache<kBytes>(kRowsPerByte * columns, to.first, y.first);
          continue;
        }
      const Io* x[kRowsPerByte];
      Io* y[kRowsPerByte];
      group.places(call->x, n, columns, x);
      group.places(call->y, n, columns, y);
      Staging<kBytes, Io, Real>::stretches(columns, [&](int64_t first, int64_t length) ATTSNN_INLINED {
        const RowsApart<Real> rows{staged, kStaged};
        for (int m = 0; m < group.count; ++m) Staging<kBytes, Io, Real>::in(length, x[m] + first, rows(m));
        apply<kBytes, false>(call->fusion, *factors, group.count, weights, first, padded<Real>(length), rows,
                             rows);
        if (bits) pack_bits(group.count, length, rows, bits + first);
        for (int m = 0; m < group.count; ++m) convert_row(length, rows(m), y[m] + first);
      });
    }
    if (past != Past::kNever) stored_past_the_cache();
  }

 private:
  template <int kBytes, bool kPast, class X, class Y>
  static ATTSNN_INLINE void apply(Fusion fusion, const Factors<Real>& factors, int count, const Real* weights,
                                  int64_t first, int64_t columns, const X& x, const Y& y) {
    using V = Vector<Real, kBytes>;
    over_rows<kBytes>(count, [&](auto rows, int64_t i) ATTSNN_INLINED {
      compose<kBytes, rows.value>(factors, weights + i * factors.ranks, first, columns,
                                  [&](auto& block, int64_t j, int64_t last) ATTSNN_INLINED {
                                    const auto with = [&](Fusion known) ATTSNN_INLINED {
                                      auto from = x.walk(i, j);
                                      auto to = y.walk(i, j);
                                      block.each(
                                          [&](int m, int v) ATTSNN_INLINED {
                                            const int64_t at = block.at(v, last);
                                            V value;
                                            load_vector(from.at + at, value);
                                            value = weigh(known, block.sums[m][v], value);
                                            kPast ? store_past_the_cache(value, to.at + at)
                                                  : store_vector(value, to.at + at);
                                          },
                                          from, to);
                                    };
                                    if (fusion == Fusion::kMultiply) return with(Fusion::kMultiply);
                                    with(fusion == Fusion::kAdd ? Fusion::kAdd : Fusion::kResidual);
                                  });
    });
  }
};

// ---- the gradient of x: what passes it by, plus what its means hand back

// by_column [T, J] and by_row [T, I] of the sample.
template <class Real>
struct MeansBack {
  const Real *by_column, *by_row;
};

template <class Io, class Real>
struct GradientLoops {
  template <int kBytes>
  static ATTSNN_INLINE void run(const PfaBackward<Io, Real>* call, const Factors<Real>* factors,
                                const MeansBack<Real>* means, int64_t n, int64_t begin, int64_t end,
                                Past past, Real* staged) {
    const PfaShape& shape = call->shape;
    const int64_t columns = shape.columns(), rows = shape.rows();
    const bool added = call->fusion == Fusion::kAdd;
    alignas(64) Real weights[kRowsPerByte * kMaxRank];
    for (int64_t g = begin; g < end; ++g) {
      const RowGroup group(shape, g);
      if (!added) group.weigh_by<kBytes>(*factors, weights);
      Real by_row[kRowsPerByte];
      for (int m = 0; m < group.count; ++m) by_row[m] = means->by_row[group.t(m) * rows + group.i(m)];
      if constexpr (std::is_same_v<Io, Real>)
        if (!Staging<kBytes, Io, Real>::needed(columns) && group.together) {
          const auto grad = group.apart(call->grad_y, n, columns),
                     x = added ? grad : group.apart(call->x, n, columns);
          const auto grad_x = group.apart(call->grad_x, n, columns);
          const bool staging = past == Past::kGroups;
          const RowsApart<Real> to = staging ? RowsApart<Real>{staged, columns} : grad_x;
          const RowsApart<const Real> by_column{means->by_column + group.step * columns, 0};
          if (added)
            for (int m = 0; m < kRowsPerByte; ++m)
              pass(columns, m, call->bits + (n * shape.groups() + g) * columns, grad(m), by_column(m),
                   by_row[m], to(m));
          else if (past == Past::kRows)
            gradient<kBytes, true>(call->fusion, *factors, kRowsPerByte, weights, 0, columns, x, grad,
                                   by_column, by_row, to);
          else
            gradient<kBytes, false>(call->fusion, *factors, kRowsPerByte, weights, 0, columns, x, grad,
                                    by_column, by_row, to);
          if (staging) copy_past_the_cache<kBytes>(kRowsPerByte * columns, to.first, grad_x.first);
          continue;
        }
      const Io *x[kRowsPerByte], *grad[kRowsPerByte];
      Io* to[kRowsPerByte];
      if (!added) group.places(call->x, n, columns, x);
      group.places(call->grad_y, n, columns, grad);
      group.places(call->grad_x, n, columns, to);
      const auto by_column = [&](int m) ATTSNN_INLINED { return means->by_column + group.t(m) * columns; };
      if (added) {
        const uint8_t* bits = call->bits + (n * shape.groups() + g) * columns;
        for (int m = 0; m < group.count; ++m) pass(columns, m, bits, grad[m], by_column(m), by_row[m], to[m]);
        continue;
      }
      Staging<kBytes, Io, Real>::stretches(columns, [&](int64_t first, int64_t length) ATTSNN_INLINED {
        const RowsApart<Real> rows_of_x{staged, kStaged}, rows_of_grad{rows_of_x(kRowsPerByte), kStaged};
        const RowsApart<Real> sums{rows_of_grad(kRowsPerByte), kStaged};
        for (int m = 0; m < group.count; ++m) {
          Staging<kBytes, Io, Real>::in(length, x[m] + first, rows_of_x(m));
          Staging<kBytes, Io, Real>::in(length, grad[m] + first, rows_of_grad(m));
          Staging<kBytes, Io, Real>::in(length, by_column(m) + first, sums(m));
        }
        gradient<kBytes, false>(call->fusion, *factors, group.count, weights, first, padded<Real>(length),
                                rows_of_x, rows_of_grad, sums, by_row, rows_of_grad);
        for (int m = 0; m < group.count; ++m) convert_row(length, rows_of_grad(m), to[m] + first);
      });
    }
    if (past != Past::kNever) stored_past_the_cache();
  }

 private:
  static ATTSNN_INLINE void pass(int64_t columns, int row, const uint8_t* __restrict bits,
                                 const Io* __restrict grad, const Real* __restrict by_column, Real by_row,
                                 Io* __restrict to) {
#pragma GCC ivdep
    for (int64_t j = 0; j < columns; ++j)
      to[j] = Io(((bits[j] >> row & 1) != 0 ? Real(grad[j]) : Real(0)) + (by_column[j] + by_row));
  }

  template <int kBytes, bool kPast, class X, class Grad, class Sums, class To>
  static ATTSNN_INLINE void gradient(Fusion fusion, const Factors<Real>& factors, int count,
                                     const Real* weights, int64_t first, int64_t columns, const X& x,
                                     const Grad& grad, const Sums& by_column, const Real* by_row,
                                     const To& to) {
    using V = Vector<Real, kBytes>;
    over_rows<kBytes>(count, [&](auto rows, int64_t i) ATTSNN_INLINED {
      compose<kBytes, rows.value>(
          factors, weights + i * factors.ranks, first, columns,
          [&](auto& block, int64_t j, int64_t last) ATTSNN_INLINED {
            const auto with = [&](Fusion known) ATTSNN_INLINED {
              auto x_row = x.walk(i, j), grad_row = grad.walk(i, j), column = by_column.walk(i, j);
              auto to_row = to.walk(i, j);
              block.each(
                  [&](int m, int v) ATTSNN_INLINED {
                    const int64_t at = block.at(v, last);
                    V value, own, sum;
                    load_vector(x_row.at + at, value);
                    load_vector(grad_row.at + at, own);
                    load_vector(column.at + at, sum);
                    value = to_x(known, own, block.sums[m][v], value) + (sum + by_row[i + m]);
                    kPast ? store_past_the_cache(value, to_row.at + at) : store_vector(value, to_row.at + at);
                  },
                  x_row, grad_row, column, to_row);
            };
            fusion == Fusion::kMultiply ? with(Fusion::kMultiply) : with(Fusion::kResidual);
          });
    });
  }
};

}  // namespace attsnn
