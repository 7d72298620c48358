// Run in a copy of a page: opens all that can be opened, and measures. What it finds becomes the text of an element
// of its own, so that a browser that prints the page prints it.
// Later than the load itself, so that requests that failed are on record.
addEventListener('load', () => setTimeout(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const brief = (one) => one.outerHTML.slice(0, 100);
  const closed = all('details').filter(one => !one.open).length;
  all('details').forEach(one => one.open = true);
  const root = document.documentElement;

  // What has a role and needs a name: text, a label, or another element's text.
  const nameOf = (one) => {
    const by = (one.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean);
    const said = by.map(id => document.getElementById(id)?.textContent ?? '').join(' ');
    return (said || one.getAttribute('aria-label') || (one.matches('a, summary, button') ? one.textContent : '')).trim();
  };
  const needing = all('a[href], summary, button, input, select, nav, [role=region], [role=img], section, [tabindex]');

  // What the keyboard reaches, in the order in which it does.
  const reached = all('a[href], summary, [tabindex], button, input, select');
  const tops = reached.map(one => one.getBoundingClientRect().top + scrollY);
  const jumps = reached.filter((one, at) => at > 0 && tops[at] < tops[at - 1] - 40);

  // Contrast as in WCAG 2.2, of each piece of text with what is behind it.
  const parse = (text) => {
    const parts = text.match(/[\d.]+/g).map(Number);
    return parts.length < 4 ? [...parts, 1] : parts;
  };
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map(part => part / 255).map(part =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const contrast = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const behind = (one) => {
    const box = one.getBoundingClientRect();
    const [x, y] = [box.left + Math.min(4, box.width / 2), box.top + box.height / 2];
    const svg = one.closest('svg');
    const covers = (rect) => {
      const area = rect.getBoundingClientRect();
      return area.left <= x && x <= area.right && area.top <= y && y <= area.bottom;
    };
    const rect = svg && [...svg.querySelectorAll('rect')].filter(covers).pop();
    if (rect) return parse(getComputedStyle(rect).fill);
    for (let at = svg ? svg.parentElement : one; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
      if (colour[3] > 0) return [0, 0, 0, 0];
    }
    return [255, 255, 255, 1];
  };
  const texts = all('body *').filter(one =>
    [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && !one.closest('script, desc, title') &&
    getComputedStyle(one).display !== 'none');
  const faint = texts.filter(one => {
    const style = getComputedStyle(one);
    const front = parse(one.closest('svg') ? style.fill : style.color);
    const large = parseFloat(style.fontSize) >= 24 || parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700;
    return contrast(front, behind(one)) < (large ? 3 : 4.5);
  });

  const levels = all('h1, h2, h3, h4, h5, h6').map(one => [Number(one.tagName[1]), one]);
  const ids = all('[id]').map(one => one.id);
  const refers = all('[aria-labelledby]').flatMap(one => one.getAttribute('aria-labelledby').split(' '));
  const links = all('a[href^="#"]').map(one => one.getAttribute('href').slice(1));
  const wide = all('body *').filter(one => !one.closest('.scroll > *, svg') &&
    one.getBoundingClientRect().right > root.clientWidth + 1);
  const scrolls = all('*').filter(one => one !== root && one !== document.body && one.tabIndex < 0 &&
    one.scrollWidth > one.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(one).overflowX));

  const out = document.createElement('pre');
  out.id = 'measured';
  out.textContent = JSON.stringify({
    inner: root.clientWidth,
    scroll: root.scrollWidth,
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    background: getComputedStyle(document.body).backgroundColor,
    closed,
    reached: reached.length,
    texts: texts.length,
    faults: {
      wide: wide.slice(0, 5).map(brief),
      nameless: needing.filter(one => !nameOf(one)).map(brief),
      unreachable: reached.filter(one => { one.focus(); return document.activeElement !== one; }).map(brief),
      unmarked: reached.filter(one => { one.focus();
        return one.matches(':focus-visible') && getComputedStyle(one).outlineStyle === 'none'; }).map(brief),
      reordered: all('[tabindex]').filter(one => one.tabIndex > 0).concat(jumps).map(brief),
      scrolledByPointerOnly: scrolls.map(brief),
      faint: faint.slice(0, 5).map(one => brief(one) + ' ' + getComputedStyle(one).color + ' on ' + behind(one)),
      small: texts.filter(one => parseFloat(getComputedStyle(one).fontSize) < 11).map(brief).slice(0, 5),
      headings: levels.filter(([level], at) => level > (at ? levels[at - 1][0] : 0) + 1).map(([, one]) => brief(one)),
      headers: all('th:not([scope])').map(brief),
      twice: ids.filter((id, at) => ids.indexOf(id) !== at),
      nowhere: refers.concat(links).filter(id => !document.getElementById(id)),
      document: ['html[lang]', 'head > title', 'main', 'h1', 'meta[name=viewport]']
        .filter(selector => document.querySelectorAll(selector).length !== 1),
      // Requests to files are not on record.
      requests: performance.getEntriesByType('resource').map(one => one.name).concat(
        all('[src], [srcset], [data], link[href]:not([href^="data:"]), image, use').map(brief)),
    },
  });
  document.body.append(out);
}, 100));
