// Ring sampling, one segment at a time. For every start q on a circle of terms (f_p, s_p), the noise is the sum over a
// window of exactly `num_terms` consecutive positions,
//     eps_q = f_q + s_q * (f_{q+1} + s_{q+1} * ( ... )),
// and one scan computes all of them.
//
// The circle is cut into segments of at most num_terms positions. A window that starts inside a segment [begin, end)
// consists of a suffix of the segment and a prefix of the terms that follow it. With
//     prefix_m = the sum of the first m terms after the segment,
//     (tail_q, decay_q) = the suffix from q, as an affine map of what follows the segment,
// the noise is eps_q = tail_q + decay_q * prefix_m with m = num_terms - (end - q). This is exact, linear in the length
// of the segment, and needs no division. Because weights decay, few terms of the prefix are usually needed: it is
// settled once its weight has vanished.
//
// Value is a pack of columns, and has_vanished(Value) tells whether the weights of all of them have vanished. Io reads
// and writes by position, which may exceed the circle by less than one turn. It has term(position, f, s), emit(start,
// eps), prefetch(position), prefetch_result(position), which includes the result's row, and poll(), which is called
// from time to time while many terms are read. Prefetching matters because the rows lie anywhere in memory.
#pragma once

#include <cstdint>

namespace echo_ext {

struct RingSegment {
  int64_t begin, end;  // the starts of its windows
  int64_t num_terms;   // at least end - begin
  // The number of terms after the segment that at least one window contains, and the number of those that all windows
  // contain.
  int64_t num_following() const { return num_terms - 1; }
  int64_t shared() const { return num_terms - (end - begin); }
  // The number of terms after the segment that the window from q contains.
  int64_t prefix_terms(int64_t q) const { return num_terms - (end - q); }
};

// How many positions ahead of its use a row is prefetched.
constexpr int64_t kPrefetchDistance = 24;

constexpr int64_t kTermsPerPoll = 1 << 14;

// The sum over the terms after a segment that have been added so far. `left_out` is used by the backward pass only.
template <typename Value>
struct RingPrefix {
  Value sum, weight, left_out;
  int64_t terms;
  bool is_settled;  // further terms would not change the result
};

// Adds up to kTermsPerPoll further terms after a segment. Not inlined: the caller polls between calls, and a call
// within these loops would keep values from staying in registers.
template <typename Value, typename Io>
__attribute__((noinline)) void extend_forward(const RingSegment& segment, Value* prefix, const Io& io,
                                              RingPrefix<Value>& following) {
  Value sum = following.sum, weight = following.weight, f, s;
  const int64_t poll_at = following.terms + kTermsPerPoll;
  const int64_t end = segment.num_following() < poll_at ? segment.num_following() : poll_at;
  int64_t m = following.terms;
  bool is_settled = false;
  for (; m < end && !is_settled; ++m) {
    if (m >= segment.shared()) prefix[m - segment.shared()] = sum;
    io.prefetch(segment.end + m + kPrefetchDistance);
    io.term(segment.end + m, f, s);
    sum = sum + weight * f;
    weight = weight * s;
    is_settled = has_vanished(weight);
  }
  following = {sum, weight, following.left_out, m, is_settled};
}

// `prefix` has one entry for each position of the segment.
template <typename Value, typename Io>
void ring_forward(const RingSegment& segment, Value* prefix, const Io& io) {
  const Value zero = Value::filled(0), one = Value::filled(1);
  RingPrefix<Value> following{zero, one, zero, 0, false};
  extend_forward(segment, prefix, io, following);
  while (!following.is_settled && following.terms < segment.num_following()) {
    io.poll();
    extend_forward(segment, prefix, io, following);
  }
  const Value sum = following.sum;
  const int64_t settled = following.terms;  // prefix_m is constant from here on
  Value f, s;
  if (settled <= segment.shared()) {  // all windows contain the whole prefix, so one recurrence is enough
    Value noise = sum;
    for (int64_t q = segment.end - 1; q >= segment.begin; --q) {
      io.prefetch_result(q - kPrefetchDistance);
      io.term(q, f, s);
      noise = f + s * noise;
      io.emit(q, noise);
    }
    return;
  }
  Value tail = zero, decay = one;
  for (int64_t q = segment.end - 1; q >= segment.begin; --q) {
    io.prefetch_result(q - kPrefetchDistance);
    io.term(q, f, s);
    tail = f + s * tail;
    decay = s * decay;
    const int64_t m = segment.prefix_terms(q);
    io.emit(q, has_vanished(decay) ? tail : tail + decay * (m >= settled ? sum : prefix[m - segment.shared()]));
  }
}

template <typename Value>
struct RingScratch {
  Value *prefix, *prefix_gradient, *decays;  // one entry for each position of the segment
  Value* tails;                              // the same; if the prefix is settled, these are complete noise values
  Value* weights;                            // segment.num_following() entries
};

// The adjoint if all windows of a segment contain the whole prefix, `sum`. One recurrence is enough. On entry
// `gradient` is the gradient of the first noise value of the segment; the result is the gradient of what follows the
// segment.
template <typename Value, typename Io>
Value ring_backward_settled(const RingSegment& segment, const Value& sum, Value gradient,
                            const RingScratch<Value>& scratch, const Io& io) {
  Value noise = sum, f, s;
  for (int64_t q = segment.end - 1; q >= segment.begin; --q) {
    scratch.tails[q - segment.begin] = noise;
    io.prefetch(q - kPrefetchDistance);
    io.term(q, f, s);
    noise = f + s * noise;
  }
  for (int64_t q = segment.begin; q < segment.end; ++q) {
    io.prefetch_gradient(q + kPrefetchDistance);
    io.term(q, f, s);
    const Value following = scratch.tails[q - segment.begin];
    gradient = gradient + io.noise_gradient(q, f + s * following);
    io.add_gradient(q, gradient, gradient * following);
    gradient = gradient * s;
  }
  return gradient;
}

// The same if some windows end within the prefix. Stores the gradients of their prefixes in scratch.prefix_gradient,
// and returns the gradient of `sum`.
template <typename Value, typename Io>
Value ring_backward_unsettled(const RingSegment& segment, const Value& sum, int64_t settled, const Value& gradient,
                              const RingScratch<Value>& scratch, const Io& io) {
  const auto prefix = [&](int64_t q) -> Value {
    const int64_t m = segment.prefix_terms(q);
    return m >= settled ? sum : scratch.prefix[m - segment.shared()];
  };
  Value tail = Value::filled(0), decay = Value::filled(1), f, s;
  for (int64_t q = segment.end - 1; q >= segment.begin; --q) {
    scratch.tails[q - segment.begin] = tail;
    scratch.decays[q - segment.begin] = decay;
    io.prefetch(q - kPrefetchDistance);
    io.term(q, f, s);
    tail = f + s * tail;
    decay = s * decay;
  }
  // Through the suffixes, from the longest to the shortest.
  Value tail_gradient = gradient, decay_gradient = gradient * sum, sum_gradient = gradient * decay;
  for (int64_t q = segment.begin; q < segment.end; ++q) {
    io.prefetch_gradient(q + kPrefetchDistance);
    io.term(q, f, s);
    const Value tail_after = scratch.tails[q - segment.begin], decay_after = scratch.decays[q - segment.begin];
    const Value following = prefix(q);
    const Value grad = io.noise_gradient(q, f + s * (tail_after + decay_after * following));
    const Value through_prefix = grad * (s * decay_after);
    if (segment.prefix_terms(q) >= settled)
      sum_gradient = sum_gradient + through_prefix;
    else
      scratch.prefix_gradient[q - segment.begin] = through_prefix;
    tail_gradient = tail_gradient + grad;
    decay_gradient = decay_gradient + grad * following;
    io.add_gradient(q, tail_gradient, tail_gradient * tail_after + decay_gradient * decay_after);
    tail_gradient = tail_gradient * s;
    decay_gradient = decay_gradient * s;
  }
  return sum_gradient;
}

// Adds terms as extend_forward does, and stores what the adjoint needs. In the gradient of an s, that s is missing from
// the product. Therefore a vanished weight does not settle the prefix: the product without its smallest factor,
// left_out, must have vanished.
template <typename Value, typename Io>
__attribute__((noinline)) void extend_backward(const RingSegment& segment, const RingScratch<Value>& scratch,
                                               int64_t max_terms, const Io& io, RingPrefix<Value>& following) {
  Value sum = following.sum, weight = following.weight, left_out = following.left_out, f, s;
  const int64_t poll_at = following.terms + kTermsPerPoll;
  const int64_t end = max_terms < poll_at ? max_terms : poll_at;
  int64_t m = following.terms;
  bool is_settled = false;
  for (; m < end && !is_settled; ++m) {
    if (m >= segment.shared()) scratch.prefix[m - segment.shared()] = sum;
    scratch.weights[m] = weight;
    io.prefetch(segment.end + m + kPrefetchDistance);
    io.term(segment.end + m, f, s);
    sum = sum + weight * f;
    left_out = maximum(left_out * absolute(s), absolute(weight));
    weight = weight * s;
    is_settled = has_vanished(left_out);
  }
  following = {sum, weight, left_out, m, is_settled};
}

// Goes backward through up to kTermsPerPoll terms after a segment, those before `end`. sum_gradient is the gradient of
// prefix_{m+1} and of all longer prefixes.
template <typename Value, typename Io>
__attribute__((noinline)) void backward_through_following(const RingSegment& segment, int64_t end,
                                                          const RingScratch<Value>& scratch, const Io& io,
                                                          Value& sum_gradient, Value& weight_gradient) {
  Value of_sum = sum_gradient, of_weight = weight_gradient, f, s;
  const int64_t begin = end < kTermsPerPoll ? 0 : end - kTermsPerPoll;
  for (int64_t m = end - 1; m >= begin; --m) {
    io.term(segment.end + m, f, s);
    const Value weight = scratch.weights[m];
    io.add_gradient(segment.end + m, weight * of_sum, weight * of_weight);
    of_weight = f * of_sum + s * of_weight;
    if (m >= segment.shared()) of_sum = of_sum + scratch.prefix_gradient[m - segment.shared()];
  }
  sum_gradient = of_sum;
  weight_gradient = of_weight;
}

// The adjoint of ring_forward. Io has term(), prefetch() and poll() as above, and
//     noise_gradient(start, eps), which receives each noise value again and returns its gradient,
//     add_gradient(position, df, ds) and prefetch_gradient(position),
//     end(), the end of the positions that may be added to,
//     begin_following(end), which is called before anything is added after the segment, with the end of those
//     positions.
//
// Segments are processed in the order of their positions. If no window of a segment ends before its weight has
// vanished, `carry` passes the gradient of what follows the segment to the next segment. Other segments, and the last
// one, add it to the terms after themselves. The same applies to a gradient that is not finite, which would never
// vanish. Returns the end of the positions that were added to, or -1 if it would exceed io.end(), in which case nothing
// has been done.
template <typename Value, typename Io>
int64_t ring_backward(const RingSegment& segment, bool is_last, const RingScratch<Value>& scratch, Value& carry,
                      const Io& io) {
  const Value zero = Value::filled(0), one = Value::filled(1);
  const int64_t available = io.end() - segment.end,
                max_terms = segment.num_following() < available ? segment.num_following() : available;
  RingPrefix<Value> following{zero, one, zero, 0, false};
  extend_backward(segment, scratch, max_terms, io, following);
  while (!following.is_settled && following.terms < max_terms) {
    io.poll();
    extend_backward(segment, scratch, max_terms, io, following);
  }
  if (!following.is_settled && max_terms < segment.num_following()) return -1;
  const Value sum = following.sum;
  const int64_t settled = following.terms;
  const bool is_settled = settled <= segment.shared();
  Value sum_gradient = is_settled ? ring_backward_settled(segment, sum, carry, scratch, io)
                                  : ring_backward_unsettled(segment, sum, settled, carry, scratch, io);
  const bool is_finite = has_vanished(zero * sum_gradient);
  if (is_settled && following.is_settled && is_finite && !is_last) {
    carry = has_vanished(sum_gradient) ? zero : sum_gradient;
    return segment.end;
  }
  carry = zero;
  // Backward through the prefix, from its last term.
  io.begin_following(segment.end + settled);
  Value weight_gradient = zero;
  for (int64_t end = settled; end > 0; end -= kTermsPerPoll) {
    if (end < settled) io.poll();
    backward_through_following(segment, end, scratch, io, sum_gradient, weight_gradient);
  }
  return segment.end + settled;
}

}  // namespace echo_ext
