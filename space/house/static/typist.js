// Types text evenly at the pace at which it comes, a character at a time. Knows nothing of scenes or of the page.

const SLOWEST = 8; // characters a second
const FIRST = 45; // until there is a pace to go by
const FASTEST = 110; // what comes faster than this waits its turn: nobody can watch it

export class Typist {
  /** `show(count)` is called with how many characters are to be seen, and `done()` when all have been and no more will come. */
  constructor(show, done) {
    Object.assign(this, { show, done, typed: 0, came: 0, ended: false, speed: FIRST, gap: 0.2, last: null, frame: null, part: 0 });
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  }

  /** `came` characters are there by now. */
  feed(came, ended) {
    const now = performance.now() / 1000;
    if (came > this.came) {
      if (this.last !== null) this.gap = 0.7 * this.gap + 0.3 * Math.min(2, Math.max(0.05, now - this.last));
      this.last = now;
      this.came = came;
      const wanted = (came - this.typed) / (1.25 * this.gap); // all of it, a little after the next portion is expected
      this.speed = Math.min(FASTEST, Math.max(SLOWEST, wanted));
    }
    if (ended) {
      this.ended = true;
      this.speed = Math.min(FASTEST, Math.max(this.speed, FIRST));
    }
    if (this.still) this.typed = this.came;
    this.wake();
  }

  wake() {
    if (this.frame !== null) return;
    let before = performance.now();
    const step = (now) => {
      this.frame = null;
      this.part += (this.speed * Math.min(100, now - before)) / 1000;
      before = now;
      const whole = Math.floor(this.part);
      this.part -= whole;
      this.typed = Math.min(this.came, this.typed + whole);
      this.show(this.typed);
      if (this.typed < this.came) this.frame = requestAnimationFrame(step);
      else if (this.ended) this.done();
      else this.part = 0;
    };
    this.frame = requestAnimationFrame(step);
  }

  /** Shows all that is there. */
  finish() {
    this.typed = this.came;
    this.wake();
  }

  /** Stops where it is. */
  stop() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.frame = null;
    this.ended = true;
    this.came = this.typed;
  }
}
