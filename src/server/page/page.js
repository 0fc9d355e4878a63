'use strict';
// Keeps the page up to date. Elements are changed in place, never replaced as a whole, so that
// focus, selection and scroll position stay.
(() => {
  const live = document.getElementById('live');
  const table = document.querySelector('table');
  // The server sends something at least every 10 s; more than twice that is a dead connection.
  const MAX_IDLE = 25000;
  let source, idleTimer, pause = 1000;

  const show = (state, words) => {
    document.documentElement.dataset.live = state;
    if (live.textContent !== words) live.textContent = words;
  };
  const clock = () => new Date().toISOString().slice(11, 19) + ' UTC';

  const patch = (old, fresh) => {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    const had = [...old.childNodes];
    const has = [...fresh.childNodes];
    has.forEach((node, nth) => {
      if (nth < had.length) patch(had[nth], node);
      else old.append(node);
    });
    had.slice(has.length).forEach((node) => node.remove());
  };

  const reorder = (order) => {
    const focused = document.activeElement;
    const ids = new Set(order);
    for (const rows of [...table.tBodies]) {
      if (!ids.has(rows.id)) rows.remove();
    }
    order.forEach((id, nth) => {
      const rows = document.getElementById(id);
      const here = table.tBodies[nth];
      if (rows && rows !== here) table.insertBefore(rows, here || null);
    });
    if (focused !== document.activeElement && focused.isConnected) {
      focused.focus({ preventScroll: true });
    }
  };

  const update = ({ title, order, parts }) => {
    if (document.title !== title) document.title = title;
    for (const [id, html] of Object.entries(parts)) {
      const template = document.createElement('template');
      template.innerHTML = html;
      const fresh = template.content.firstElementChild;
      const old = document.getElementById(id);
      if (old) patch(old, fresh);
      else table.append(fresh);
    }
    reorder(order);
  };

  const lost = (words) => {
    clearTimeout(idleTimer);
    source.close();
    show('lost', words);
    setTimeout(listen, pause);
    pause = Math.min(pause * 2, 10000);
  };
  const onUpdate = () => {
    pause = 1000;
    show('live', 'live');
    clearTimeout(idleTimer);
    idleTimer = setTimeout(() => lost(`connection lost at ${clock()}; retrying`), MAX_IDLE);
  };

  const listen = () => {
    source = new EventSource('events');
    source.onmessage = ({ data }) => {
      update(JSON.parse(data));
      onUpdate();
    };
    source.addEventListener('beat', onUpdate);
    source.addEventListener('end', () => lost(`draining since ${clock()}; no further updates`));
    source.onerror = () => {
      const isLost = document.documentElement.dataset.live === 'lost';
      lost(isLost ? live.textContent : `connection lost at ${clock()}; retrying`);
    };
  };
  listen();
})();
