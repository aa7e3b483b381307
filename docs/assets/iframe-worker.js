// Search in pages that were opened as files. Browsers allow no workers there,
// so the script of the worker runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script src="${url}"><\/script>`;
      this.frame.onload = () => {
        this.inner = this.frame.contentWindow;
        this.inner.postMessage = (data) =>
          setTimeout(() => this.onmessage?.(new MessageEvent("message", { data })));
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      };
      document.body.append(this.frame);
    }

    postMessage(data) {
      if (!this.inner) return void this.waiting.push(data);
      const copy = this.inner.structuredClone(data);
      const event = new this.inner.MessageEvent("message", { data: copy });
      setTimeout(() => this.inner?.dispatchEvent(event));
    }

    terminate() {
      this.frame.remove();
      this.inner = null;
    }
  };
}
