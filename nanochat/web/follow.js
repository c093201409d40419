// Staying at the end of what grows, unless the reader has gone elsewhere.   in: scrolling
// out: scrolling, a button to come back   who calls: transcript.js

const NEAR_PX = 48;

export class Follower {
  #isFollowing = true;
  #top = 0;

  constructor(scroller, content, button) {
    Object.assign(this, { scroller, button });
    scroller.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    button.addEventListener("click", () => this.toEnd(true));
    new ResizeObserver(() => this.follow()).observe(content);
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  /** The end, now, and from now on. */
  toEnd(isSmooth = false) {
    this.#isFollowing = true;
    const isCalm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: isSmooth && !isCalm ? "smooth" : "instant" });
    this.#show();
  }

  /** Something has grown. */
  follow() {
    if (this.#isFollowing) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#show();
  }

  /** Only the reader scrolls up; what is below grows without an event. */
  #onScroll() {
    const { scrollTop } = this.scroller;
    if (this.#distance() < NEAR_PX) this.#isFollowing = true;
    else if (scrollTop < this.#top) this.#isFollowing = false;
    this.#top = scrollTop;
    this.#show();
  }

  #distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  #show() {
    this.button.hidden = this.#isFollowing || this.#distance() < NEAR_PX;
  }
}
