// The neurons of a range through all steps, whatever their rows come from and go to: memory of any type, or a
// seam that computes them. Compiled by state type in tiles_<type>.cpp; the arithmetic is in loop.h and
// rows.h.
#pragma once
#include "core/call.h"
#include "tensor/dispatch.h"

namespace attsnn {

// Neurons of a tile: rows long enough to stream, a chunk of steps of them in the second-level cache.
inline constexpr int64_t kTile = 1024;
static_assert(kTile % kNeuronsPerByte == 0, "tiles share no byte");

// A row is `count` <= kTile neurons, from `first` on, at step t, in the state's type.
template <class Real>
class Source {
 public:
  // The row: where it lies, or computed into the buffer.
  virtual const Real* row(int64_t t, int64_t first, int64_t count, Real* buffer) const = 0;

 protected:
  ~Source() = default;
};

template <class Real>
class Sink {
 public:
  // Where the row is to be computed: in its place, or in the buffer.
  virtual Real* place(int64_t t, int64_t first, Real* buffer) const = 0;
  // Takes the row that was computed there.
  virtual void take(int64_t t, int64_t first, int64_t count, Real* row) const = 0;

 protected:
  ~Sink() = default;
};

template <class Cell, class Real>
using ForwardTiles = Forward<Cell, Real, const Source<Real>*, const Sink<Real>*>;
template <class Cell, class Real>
using BackwardTiles = Backward<Cell, Real, const Source<Real>*, const Source<Real>*, const Sink<Real>*>;

// Neurons [begin, end), in tiles from `begin` on.
template <class Cell, class Real>
void forward_tiles(const ForwardTiles<Cell, Real>& call, const Firing& firing, int64_t begin, int64_t end);
template <class Cell, class Real>
void backward_tiles(const BackwardTiles<Cell, Real>& call, const Firing& firing, int64_t begin, int64_t end);

}  // namespace attsnn
