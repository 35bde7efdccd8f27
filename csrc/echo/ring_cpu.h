// The ring's noises: for every start q on a circle of terms (f_p, s_p), the sum over a window of exactly `num_terms`
// consecutive positions,  eps_q = f_q + s_q * (f_{q+1} + s_{q+1} * ( ... )),  all of them in one scan.
//
// The circle is cut into segments of at max_terms num_terms positions. A window that starts inside a segment is a
// suffix of the segment and a prefix of what follows it, so that with
//     prefix_m = the sum of the first m terms following the segment,
//     (tail_q, decay_q) = the suffix from q as an affine map of what follows,
// eps_q = tail_q + decay_q * prefix_m with m = num_terms - (end - q): exact, linear in the segment, no division.
// Weights decay, so that prefix_m hardly ever needs all its terms: it stops where a weight has vanished.
//
// Value is a pack of columns; has_vanished(Value) tells whether all of it has. Io reads and writes by position,
// which may exceed the circle by less than one turn: term(position, f, s), emit(start, eps), prefetch(position), since
// rows lie anywhere in memory, and prefetch_result(position), which also asks for the result's row. Io also has
// poll(), called now and then while many terms are read.
#pragma once

#include <cstdint>

namespace echo_ext {

struct RingSegment {
  int64_t begin, end;  // starts
  int64_t num_terms;   // at least end - begin
  // Terms following the segment that some window needs, and those of them that every window has.
  int64_t num_following() const { return num_terms - 1; }
  int64_t shared() const { return num_terms - (end - begin); }
  // Of the window from q.
  int64_t prefix_terms(int64_t q) const { return num_terms - (end - q); }
};

// How far ahead of its use a row is asked for.
constexpr int64_t kPrefetchDistance = 24;

constexpr int64_t kTermsPerPoll = 1 << 14;

// The terms following a segment, as far as they have been added up.
template <typename Value>
struct RingPrefix {
  Value sum, weight, left_out;
  int64_t terms;
  bool is_settled;  // more terms would change nothing
};

// Adds some terms to what is following a segment. Not inlined: the caller pauses between calls, and a poll_at within
// these loops' function would cost them registers.
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

// prefix has one entry for each place of the segment.
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
  const int64_t settled = following.terms;  // prefix_m is the same from here on
  Value f, s;
  if (settled <= segment.shared()) {  // every window has the whole prefix: one recurrence
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
  Value *prefix, *prefix_gradient, *decays;  // one entry for each place of the segment
  Value* tails;                              // the same; where the prefix is settled, whole noises
  Value* weights;                            // one for each of segment.num_following()
};

// The adjoint where all windows of a segment have the whole prefix, `sum`: one recurrence. `gradient` is that of the
// segment's first noise on the way in, of what follows the segment on the way out.
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

// The same where windows end within the prefix: leaves those windows' gradients in scratch.prefix_gradient.
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
  // Through the suffixes, from the outermost inwards.
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

// Adds some terms as extend_forward does, with what the adjoint needs. The gradient of an s leaves it out of the
// product, so that a weight of zero alone does not settle the prefix: the product without its smallest factor must be
// zero too.
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

// Back through some terms following a segment, those before `end`; sum_gradient is that of prefix_{m+1} and all later
// ones.
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

// The adjoint of ring_forward. Io has term as above; noise_gradient(start, eps), which is told each noise again and
// returns its gradient; add_gradient(position, df, ds) and prefetch_gradient(position); and end(), before which all
// positions lie that may be added to, after begin_following(last such position + 1) where they lie following the
// segment.
//
// Segments come in the order of their positions. Where no window of a segment ends before its weight has vanished,
// `carry` hands the gradient of what follows the segment on to the next one; other segments, and the last, add it to
// the terms following themselves, and so does a gradient that is not finite, which would never vanish. Returns the
// position following the last one that has been added to; -1 where that would be beyond io.end(), and nothing is done.
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
  // Through the prefix, from its last term back.
  io.begin_following(segment.end + settled);
  Value weight_gradient = zero;
  for (int64_t end = settled; end > 0; end -= kTermsPerPoll) {
    if (end < settled) io.poll();
    backward_through_following(segment, end, scratch, io, sum_gradient, weight_gradient);
  }
  return segment.end + settled;
}

}  // namespace echo_ext
